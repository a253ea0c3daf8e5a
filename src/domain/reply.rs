//! The words of replies, by language: a business's own, else the built-in ones. One text confirms, one says how to come
//! back; no marketing.

use std::collections::BTreeMap;

/// What a reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplyKind {
    OptOutConfirmation,
    OptInConfirmation,
    Help,
    /// Why did the person leave?
    FeedbackQuestion,
    /// What did the person mean to stop?
    Clarification,
    /// The person has said what: only that program stops.
    NarrowedConfirmation,
}

impl ReplyKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OptOutConfirmation, Self::OptInConfirmation, Self::Help, Self::FeedbackQuestion, Self::Clarification, Self::NarrowedConfirmation];

    /// The word in metrics and ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptOutConfirmation => "opt-out-confirmation",
            Self::OptInConfirmation => "opt-in-confirmation",
            Self::Help => "help",
            Self::FeedbackQuestion => "feedback-question",
            Self::Clarification => "clarification",
            Self::NarrowedConfirmation => "narrowed-confirmation",
        }
    }
}

struct Texts {
    language: &'static str,
    opt_out: &'static str,
    opt_in: &'static str,
    help: &'static str,
    feedback: &'static str,
    clarification: &'static str,
    /// After the name of the program.
    narrowed: &'static str,
}

/// The language of persons whose own has no text.
const FALLBACK: &str = "en";

#[rustfmt::skip]
const TEXTS: &[Texts] = &[
    Texts { language: "en", opt_out: "You will receive no more marketing messages from us. Reply START to receive them again.", opt_in: "You will receive our messages again. Reply STOP at any time to end them.", help: "Reply STOP to receive no more marketing messages from us, START to receive them again.", feedback: "May we ask why?", clarification: "Do you want to stop only some of our messages, or everything?", narrowed: "no more messages of this kind. Reply STOP to end all of them." },
    Texts { language: "es", opt_out: "No recibirá más mensajes promocionales nuestros. Responda START para volver a recibirlos.", opt_in: "Volverá a recibir nuestros mensajes. Responda STOP en cualquier momento para dejar de recibirlos.", help: "Responda STOP para no recibir más mensajes promocionales, START para volver a recibirlos.", feedback: "¿Nos dice por qué?", clarification: "¿Quiere dejar de recibir solo algunos mensajes o todos?", narrowed: "no recibirá más mensajes de este tipo. Responda STOP para dejar de recibirlos todos." },
    Texts { language: "pt", opt_out: "Você não receberá mais mensagens promocionais nossas. Responda START para voltar a receber.", opt_in: "Você voltará a receber nossas mensagens. Responda STOP a qualquer momento para parar.", help: "Responda STOP para não receber mais mensagens promocionais, START para voltar a receber.", feedback: "Pode nos dizer por quê?", clarification: "Quer parar só algumas mensagens ou todas?", narrowed: "você não receberá mais mensagens deste tipo. Responda STOP para parar todas." },
    Texts { language: "fr", opt_out: "Vous ne recevrez plus de messages promotionnels de notre part. Répondez START pour les recevoir à nouveau.", opt_in: "Vous recevrez à nouveau nos messages. Répondez STOP à tout moment pour ne plus les recevoir.", help: "Répondez STOP pour ne plus recevoir de messages promotionnels, START pour les recevoir à nouveau.", feedback: "Pouvez-vous nous dire pourquoi ?", clarification: "Voulez-vous arrêter seulement certains messages, ou tous ?", narrowed: "vous ne recevrez plus de messages de ce type. Répondez STOP pour tous les arrêter." },
    Texts { language: "de", opt_out: "Sie erhalten keine Werbenachrichten mehr von uns. Antworten Sie START, um sie wieder zu erhalten.", opt_in: "Sie erhalten unsere Nachrichten wieder. Antworten Sie jederzeit STOP, um sie zu beenden.", help: "Antworten Sie STOP, um keine Werbenachrichten mehr zu erhalten, START, um sie wieder zu erhalten.", feedback: "Dürfen wir fragen, warum?", clarification: "Möchten Sie nur bestimmte Nachrichten abbestellen oder alle?", narrowed: "keine Nachrichten dieser Art mehr. Antworten Sie STOP, um alle abzubestellen." },
    Texts { language: "it", opt_out: "Non riceverà più messaggi promozionali da parte nostra. Risponda START per riceverli di nuovo.", opt_in: "Riceverà di nuovo i nostri messaggi. Risponda STOP in qualsiasi momento per interromperli.", help: "Risponda STOP per non ricevere più messaggi promozionali, START per riceverli di nuovo.", feedback: "Può dirci perché?", clarification: "Vuole interrompere solo alcuni messaggi o tutti?", narrowed: "non riceverà più messaggi di questo tipo. Risponda STOP per interromperli tutti." },
    Texts { language: "nl", opt_out: "U ontvangt geen reclameberichten meer van ons. Antwoord START om ze weer te ontvangen.", opt_in: "U ontvangt onze berichten weer. Antwoord op elk moment STOP om ze te beëindigen.", help: "Antwoord STOP om geen reclameberichten meer te ontvangen, START om ze weer te ontvangen.", feedback: "Mogen we vragen waarom?", clarification: "Wilt u alleen bepaalde berichten stoppen, of alles?", narrowed: "geen berichten van dit soort meer. Antwoord STOP om alles te stoppen." },
    Texts { language: "pl", opt_out: "Nie będziemy już wysyłać wiadomości reklamowych. Odpowiedz START, aby znów je otrzymywać.", opt_in: "Znów będziemy wysyłać wiadomości. Odpowiedz STOP w dowolnej chwili, aby je zakończyć.", help: "Odpowiedz STOP, aby nie otrzymywać wiadomości reklamowych, START, aby znów je otrzymywać.", feedback: "Czy możemy zapytać dlaczego?", clarification: "Czy zrezygnować tylko z niektórych wiadomości, czy ze wszystkich?", narrowed: "nie będzie więcej takich wiadomości. Odpowiedz STOP, aby zrezygnować ze wszystkich." },
    Texts { language: "ro", opt_out: "Nu veți mai primi mesaje promoționale de la noi. Răspundeți START pentru a le primi din nou.", opt_in: "Veți primi din nou mesajele noastre. Răspundeți STOP oricând pentru a le opri.", help: "Răspundeți STOP pentru a nu mai primi mesaje promoționale, START pentru a le primi din nou.", feedback: "Ne puteți spune de ce?", clarification: "Doriți să opriți doar unele mesaje sau pe toate?", narrowed: "nu veți mai primi mesaje de acest fel. Răspundeți STOP pentru a le opri pe toate." },
    Texts { language: "tr", opt_out: "Artık bizden pazarlama mesajı almayacaksınız. Yeniden almak için START yazın.", opt_in: "Mesajlarımızı yeniden alacaksınız. Durdurmak için istediğiniz zaman STOP yazın.", help: "Pazarlama mesajı almamak için STOP, yeniden almak için START yazın.", feedback: "Nedenini öğrenebilir miyiz?", clarification: "Yalnızca bazı mesajları mı, yoksa hepsini mi durdurmak istersiniz?", narrowed: "bu tür mesaj artık gönderilmeyecek. Hepsini durdurmak için STOP yazın." },
    Texts { language: "ru", opt_out: "Вы больше не будете получать от нас рекламные сообщения. Ответьте START, чтобы получать их снова.", opt_in: "Вы снова будете получать наши сообщения. Ответьте STOP в любое время, чтобы отказаться.", help: "Ответьте STOP, чтобы не получать рекламные сообщения, START, чтобы получать их снова.", feedback: "Можно узнать почему?", clarification: "Отключить только некоторые сообщения или все?", narrowed: "таких сообщений больше не будет. Ответьте STOP, чтобы отключить все." },
    Texts { language: "uk", opt_out: "Ви більше не отримуватимете від нас рекламних повідомлень. Надішліть START, щоб отримувати їх знову.", opt_in: "Ви знову отримуватимете наші повідомлення. Надішліть STOP будь-коли, щоб відмовитися.", help: "Надішліть STOP, щоб не отримувати рекламних повідомлень, START, щоб отримувати їх знову.", feedback: "Можна дізнатися чому?", clarification: "Вимкнути лише деякі повідомлення чи всі?", narrowed: "таких повідомлень більше не буде. Надішліть STOP, щоб вимкнути всі." },
    Texts { language: "ar", opt_out: "لن تصلك منا رسائل تسويقية بعد الآن. أرسل START لاستلامها من جديد.", opt_in: "ستصلك رسائلنا من جديد. أرسل STOP في أي وقت لإيقافها.", help: "أرسل STOP لإيقاف الرسائل التسويقية، أو START لاستلامها من جديد.", feedback: "هل يمكننا معرفة السبب؟", clarification: "هل تريد إيقاف بعض الرسائل فقط أم كلها؟", narrowed: "لن تصلك رسائل من هذا النوع بعد الآن. أرسل STOP لإيقافها كلها." },
    Texts { language: "he", opt_out: "לא יישלחו אליך עוד הודעות שיווק מאיתנו. לקבלתן שוב יש להשיב START.", opt_in: "הודעותינו יישלחו אליך שוב. להפסקתן יש להשיב STOP בכל עת.", help: "להפסקת הודעות שיווק יש להשיב STOP, לקבלתן שוב START.", feedback: "אפשר לשאול למה?", clarification: "לעצור רק חלק מההודעות או את כולן?", narrowed: "לא יישלחו עוד הודעות מסוג זה. להפסקת כולן יש להשיב STOP." },
    Texts { language: "fa", opt_out: "دیگر پیام تبلیغاتی از ما دریافت نمی‌کنید. برای دریافت دوباره START را بفرستید.", opt_in: "پیام‌های ما را دوباره دریافت می‌کنید. هر زمان برای توقف STOP را بفرستید.", help: "برای توقف پیام‌های تبلیغاتی STOP و برای دریافت دوباره START را بفرستید.", feedback: "می‌توانیم بپرسیم چرا؟", clarification: "فقط بعضی پیام‌ها متوقف شود یا همه؟", narrowed: "دیگر پیامی از این نوع نمی‌آید. برای توقف همه STOP را بفرستید." },
    Texts { language: "hi", opt_out: "अब आपको हमारे प्रचार संदेश नहीं मिलेंगे। फिर से पाने के लिए START लिखें।", opt_in: "आपको हमारे संदेश फिर से मिलेंगे। बंद करने के लिए कभी भी STOP लिखें।", help: "प्रचार संदेश बंद करने के लिए STOP, फिर से पाने के लिए START लिखें।", feedback: "क्या हम कारण पूछ सकते हैं?", clarification: "क्या केवल कुछ संदेश बंद करने हैं या सब?", narrowed: "इस तरह के संदेश अब नहीं मिलेंगे। सब बंद करने के लिए STOP लिखें।" },
    Texts { language: "ur", opt_out: "اب آپ کو ہماری طرف سے تشہیری پیغامات نہیں ملیں گے۔ دوبارہ حاصل کرنے کے لیے START لکھیں۔", opt_in: "آپ کو ہمارے پیغامات دوبارہ ملیں گے۔ بند کرنے کے لیے کسی بھی وقت STOP لکھیں۔", help: "تشہیری پیغامات بند کرنے کے لیے STOP، دوبارہ حاصل کرنے کے لیے START لکھیں۔", feedback: "کیا ہم وجہ پوچھ سکتے ہیں؟", clarification: "کیا صرف کچھ پیغامات بند کرنے ہیں یا سب؟", narrowed: "اس قسم کے پیغامات اب نہیں ملیں گے۔ سب بند کرنے کے لیے STOP لکھیں۔" },
    Texts { language: "bn", opt_out: "আপনি আর আমাদের প্রচারমূলক বার্তা পাবেন না। আবার পেতে START লিখুন।", opt_in: "আপনি আবার আমাদের বার্তা পাবেন। বন্ধ করতে যেকোনো সময় STOP লিখুন।", help: "প্রচারমূলক বার্তা বন্ধ করতে STOP, আবার পেতে START লিখুন।", feedback: "কারণটা জানতে পারি?", clarification: "শুধু কিছু বার্তা বন্ধ করবেন, নাকি সব?", narrowed: "এ ধরনের বার্তা আর পাবেন না। সব বন্ধ করতে STOP লিখুন।" },
    Texts { language: "ta", opt_out: "இனி எங்களிடமிருந்து விளம்பரச் செய்திகள் வராது. மீண்டும் பெற START என பதிலளிக்கவும்.", opt_in: "எங்கள் செய்திகள் மீண்டும் வரும். நிறுத்த எப்போதும் STOP என பதிலளிக்கவும்.", help: "விளம்பரச் செய்திகளை நிறுத்த STOP, மீண்டும் பெற START என பதிலளிக்கவும்.", feedback: "காரணத்தை அறியலாமா?", clarification: "சில செய்திகளை மட்டும் நிறுத்தவா, எல்லாவற்றையுமா?", narrowed: "இவ்வகைச் செய்திகள் இனி வராது. எல்லாவற்றையும் நிறுத்த STOP என பதிலளிக்கவும்." },
    Texts { language: "id", opt_out: "Anda tidak akan lagi menerima pesan promosi dari kami. Balas START untuk menerimanya kembali.", opt_in: "Anda akan menerima pesan kami kembali. Balas STOP kapan saja untuk berhenti.", help: "Balas STOP untuk berhenti menerima pesan promosi, START untuk menerimanya kembali.", feedback: "Boleh kami tahu alasannya?", clarification: "Ingin menghentikan sebagian pesan saja, atau semuanya?", narrowed: "tidak ada lagi pesan jenis ini. Balas STOP untuk menghentikan semuanya." },
    Texts { language: "ms", opt_out: "Anda tidak akan menerima mesej promosi daripada kami lagi. Balas START untuk menerimanya semula.", opt_in: "Anda akan menerima mesej kami semula. Balas STOP pada bila-bila masa untuk berhenti.", help: "Balas STOP untuk berhenti menerima mesej promosi, START untuk menerimanya semula.", feedback: "Boleh kami tahu sebabnya?", clarification: "Hentikan sebahagian mesej sahaja, atau semuanya?", narrowed: "tiada lagi mesej jenis ini. Balas STOP untuk menghentikan semuanya." },
    Texts { language: "vi", opt_out: "Bạn sẽ không nhận tin quảng cáo từ chúng tôi nữa. Trả lời START để nhận lại.", opt_in: "Bạn sẽ nhận lại tin của chúng tôi. Trả lời STOP bất cứ lúc nào để dừng.", help: "Trả lời STOP để ngừng nhận tin quảng cáo, START để nhận lại.", feedback: "Cho chúng tôi biết lý do được không?", clarification: "Bạn muốn dừng chỉ một số tin hay tất cả?", narrowed: "bạn sẽ không nhận tin loại này nữa. Trả lời STOP để dừng tất cả." },
    Texts { language: "th", opt_out: "คุณจะไม่ได้รับข้อความโฆษณาจากเราอีก ตอบ START เพื่อรับอีกครั้ง", opt_in: "คุณจะได้รับข้อความจากเราอีกครั้ง ตอบ STOP ได้ทุกเมื่อเพื่อหยุดรับ", help: "ตอบ STOP เพื่อหยุดรับข้อความโฆษณา ตอบ START เพื่อรับอีกครั้ง", feedback: "ขอทราบเหตุผลได้ไหม", clarification: "ต้องการหยุดเฉพาะบางข้อความหรือทั้งหมด", narrowed: "จะไม่มีข้อความประเภทนี้อีก ตอบ STOP เพื่อหยุดทั้งหมด" },
    Texts { language: "tl", opt_out: "Hindi ka na makakatanggap ng mga promo mula sa amin. I-reply ang START para makatanggap muli.", opt_in: "Makakatanggap ka muli ng aming mga mensahe. I-reply ang STOP anumang oras para ihinto.", help: "I-reply ang STOP para ihinto ang mga promo, START para makatanggap muli.", feedback: "Maaari ba naming malaman kung bakit?", clarification: "Ilan lang ba sa mga mensahe ang ititigil, o lahat?", narrowed: "wala nang ganitong mensahe. I-reply ang STOP para itigil ang lahat." },
    Texts { language: "zh", opt_out: "您将不再收到我们的营销信息。回复 START 可重新接收。", opt_in: "您将重新收到我们的信息。随时回复 STOP 即可停止。", help: "回复 STOP 停止接收营销信息，回复 START 重新接收。", feedback: "能告诉我们原因吗？", clarification: "您想只停止部分信息，还是全部？", narrowed: "您将不再收到此类信息。回复 STOP 可全部停止。" },
    Texts { language: "ja", opt_out: "今後、宣伝メッセージはお送りしません。再開するには START と返信してください。", opt_in: "メッセージの配信を再開します。停止するにはいつでも STOP と返信してください。", help: "宣伝メッセージを停止するには STOP、再開するには START と返信してください。", feedback: "理由を教えていただけますか。", clarification: "一部の配信だけを停止しますか、それともすべてですか。", narrowed: "この種類のメッセージはお送りしません。すべて停止するには STOP と返信してください。" },
    Texts { language: "ko", opt_out: "더 이상 광고 메시지를 보내지 않습니다. 다시 받으려면 START라고 답장해 주세요.", opt_in: "메시지를 다시 보내 드립니다. 중지하려면 언제든지 STOP이라고 답장해 주세요.", help: "광고 메시지를 중지하려면 STOP, 다시 받으려면 START라고 답장해 주세요.", feedback: "이유를 알려 주시겠어요?", clarification: "일부 메시지만 중지할까요, 전부 중지할까요?", narrowed: "이 종류의 메시지는 더 이상 보내지 않습니다. 전부 중지하려면 STOP이라고 답장해 주세요." },
    Texts { language: "sw", opt_out: "Hutapokea tena ujumbe wa matangazo kutoka kwetu. Jibu START ili kuupokea tena.", opt_in: "Utapokea tena ujumbe wetu. Jibu STOP wakati wowote ili kuusitisha.", help: "Jibu STOP ili kusitisha ujumbe wa matangazo, START ili kuupokea tena.", feedback: "Tunaweza kuuliza kwa nini?", clarification: "Ungependa kusitisha baadhi ya ujumbe tu, au wote?", narrowed: "hutapokea tena ujumbe wa aina hii. Jibu STOP kusitisha wote." },
];

/// The built-in text of a reply in a language, given without its region; `None` where there is none.
fn built_in(kind: ReplyKind, language: &str) -> Option<(&'static str, &'static str)> {
    let texts = TEXTS.iter().find(|texts| texts.language == language)?;
    let text = match kind {
        ReplyKind::OptOutConfirmation => texts.opt_out,
        ReplyKind::OptInConfirmation => texts.opt_in,
        ReplyKind::Help => texts.help,
        ReplyKind::FeedbackQuestion => texts.feedback,
        ReplyKind::Clarification => texts.clarification,
        ReplyKind::NarrowedConfirmation => texts.narrowed,
    };
    Some((texts.language, text))
}

/// Words of one's own, by kind and lower-cased language tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyTexts(BTreeMap<(ReplyKind, String), String>);

impl ReplyTexts {
    /// Takes a text, in the place of an earlier one of its kind and language.
    pub fn set(&mut self, kind: ReplyKind, language: &str, text: &str) {
        self.0.insert((kind, language.to_lowercase().replace('_', "-")), text.to_owned());
    }

    /// Takes all texts of others, in the place of its own of their kinds and languages.
    pub fn lay(&mut self, others: &Self) {
        self.0.extend(others.0.iter().map(|(place, text)| (place.clone(), text.clone())));
    }

    /// The text of one's own in the first of these languages that has one; `None` where none has.
    pub fn own<'l>(&self, kind: ReplyKind, mut languages: impl Iterator<Item = &'l str>) -> Option<(String, String)> {
        languages.find_map(|language| {
            let tag = language.to_lowercase().replace('_', "-");
            let primary = tag.split('-').next().unwrap_or_default().to_owned();
            [tag, primary].into_iter().find_map(|tag| Some((tag.clone(), self.0.get(&(kind, tag))?.clone())))
        })
    }

    /// The text for a person, and the language it is in: in the first of these languages that has one, with its region and
    /// without it, own before built-in; else in English.
    pub fn of<'l>(&self, kind: ReplyKind, languages: impl Iterator<Item = &'l str>) -> (String, String) {
        let built_in = |language: &str| {
            let primary = language.split(['-', '_']).next().unwrap_or_default().to_lowercase();
            built_in(kind, &primary).map(|(language, text)| (language.to_owned(), text.to_owned()))
        };
        let found = languages.chain([FALLBACK]).find_map(|language| self.own(kind, [language].into_iter()).or_else(|| built_in(language)));
        let Some(found) = found else { unreachable!("the table holds the fallback language: see the test") };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_answered_in_their_language_else_in_the_countrys_else_in_english() {
        let of = |languages: &[&str]| ReplyTexts::default().of(ReplyKind::OptOutConfirmation, languages.iter().copied()).0;
        assert_eq!(of(&["pt-BR"]), "pt");
        assert_eq!(of(&["xx", "vi"]), "vi");
        assert_eq!(of(&["xx"]), "en");
        assert_eq!(of(&[]), "en");
    }

    #[test]
    fn own_words_come_before_built_in_ones_and_the_persons_language_before_both() {
        let mut texts = ReplyTexts::default();
        texts.set(ReplyKind::Help, "pt-BR", "oi");
        texts.set(ReplyKind::Help, "en", "hello");
        let of = |language: Option<&str>| texts.of(ReplyKind::Help, language.into_iter());
        assert_eq!(of(Some("pt_br")), ("pt-br".to_owned(), "oi".to_owned()));
        assert_eq!(of(Some("pt-PT")).0, "pt", "built in");
        assert_eq!(of(Some("xx")), ("en".to_owned(), "hello".to_owned()), "a language without a text");
        assert_eq!(of(None).1, "hello");
        assert_ne!(texts.of(ReplyKind::OptInConfirmation, ["en"].into_iter()).1, "hello");
    }

    #[test]
    fn every_text_names_a_keyword_that_is_understood_everywhere() {
        for texts in TEXTS {
            assert!(texts.opt_out.contains("START") && texts.opt_in.contains("STOP"), "{}", texts.language);
            assert!(texts.help.contains("STOP") && texts.help.contains("START"), "{}", texts.language);
            assert!(texts.narrowed.contains("STOP"), "{}", texts.language);
        }
    }
}
