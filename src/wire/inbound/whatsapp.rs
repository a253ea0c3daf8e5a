//! One WhatsApp message as Meta writes it and as YCloud passes it on, and what it says.
//!
//! # Invariants
//!
//! - Free text that WhatsApp itself writes (`system.body`, titles of errors) is never read: typed fields only.
//! - What a message says follows from the objects it holds; its `type` only tells what should have been there.
//! - A message of a type that nobody here knows says nothing, unless it holds a text.
//!
//! Source of the shape: Meta's Cloud API webhook reference (`messages`, `system`, `edit`), YCloud's
//! `whatsapp.inbound_message.received`.

use super::json::{Field, List, Object};
use crate::domain::identity::{Identities, Identity};
use crate::domain::message::{Content, Preference};
use crate::wire::DecodeError;
use serde::Deserialize;

/// The error code with which WhatsApp refuses marketing to somebody who has stopped it.
pub(super) const OPTED_OUT_CODE: i64 = 131_050;

/// One message; identities and times are named by Meta in snake case and by YCloud in camel case.
#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    pub(super) id: Field<'a>,
    #[serde(borrow, default)]
    pub(super) from: Field<'a>,
    #[serde(borrow, default)]
    pub(super) from_user_id: Field<'a>,
    #[serde(borrow, default)]
    pub(super) from_parent_user_id: Field<'a>,
    #[serde(borrow, default)]
    pub(super) timestamp: Field<'a>,

    #[serde(borrow, default, rename = "wamid")]
    pub(super) ycloud_wamid: Field<'a>,
    #[serde(borrow, default, rename = "wabaId")]
    pub(super) ycloud_account: Field<'a>,
    #[serde(borrow, default, rename = "to")]
    pub(super) ycloud_to: Field<'a>,
    #[serde(borrow, default, rename = "fromUserId")]
    pub(super) ycloud_user_id: Field<'a>,
    #[serde(borrow, default, rename = "fromParentUserId")]
    pub(super) ycloud_parent_user_id: Field<'a>,
    #[serde(borrow, default, rename = "sendTime")]
    pub(super) ycloud_send_time: Field<'a>,

    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(default)]
    context: Object<Context>,
    #[serde(borrow, default)]
    text: Object<Text<'a>>,
    #[serde(borrow, default)]
    button: Object<Box<Button<'a>>>,
    #[serde(borrow, default)]
    interactive: Object<Box<Interactive<'a>>>,
    #[serde(borrow, default)]
    image: Object<Media<'a>>,
    #[serde(borrow, default)]
    video: Object<Media<'a>>,
    #[serde(borrow, default)]
    document: Object<Media<'a>>,
    #[serde(borrow, default)]
    edit: Object<Box<Edit<'a>>>,
    #[serde(borrow, default)]
    system: Object<Box<System<'a>>>,
}

#[derive(Debug, Deserialize)]
struct Context {
    #[serde(default)]
    forwarded: Flag,
    #[serde(default)]
    frequently_forwarded: Flag,
}

/// `true`, and nothing else.
#[derive(Debug, Default)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Field::deserialize(deserializer).map(|field| Self(field.is_true()))
    }
}

#[derive(Debug, Deserialize)]
struct Text<'a> {
    #[serde(borrow, default)]
    body: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct Media<'a> {
    #[serde(borrow, default)]
    caption: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct Button<'a> {
    #[serde(borrow, default)]
    payload: Field<'a>,
    #[serde(borrow, default)]
    text: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct Interactive<'a> {
    #[serde(borrow, default)]
    button_reply: Object<Reply<'a>>,
    #[serde(borrow, default)]
    list_reply: Object<Reply<'a>>,
    #[serde(borrow, default)]
    nfm_reply: Object<FlowReply<'a>>,
}

#[derive(Debug, Deserialize)]
struct Reply<'a> {
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default)]
    title: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct FlowReply<'a> {
    #[serde(borrow, default)]
    response_json: Field<'a>,
}

/// A message in place of an earlier one; what it replaces is irrelevant, for an edit never undoes an act.
#[derive(Debug, Deserialize)]
struct Edit<'a> {
    #[serde(borrow, default)]
    message: Object<EditedMessage<'a>>,
}

#[derive(Debug, Deserialize)]
struct EditedMessage<'a> {
    #[serde(borrow, default)]
    text: Object<Text<'a>>,
    #[serde(borrow, default)]
    image: Object<Media<'a>>,
    #[serde(borrow, default)]
    video: Object<Media<'a>>,
    #[serde(borrow, default)]
    document: Object<Media<'a>>,
}

#[derive(Debug, Deserialize)]
struct System<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default)]
    wa_id: Field<'a>,
    /// The name of `wa_id` in older versions.
    #[serde(borrow, default)]
    new_wa_id: Field<'a>,
    #[serde(borrow, default)]
    user_id: Field<'a>,
    #[serde(borrow, default)]
    parent_user_id: Field<'a>,
    #[serde(borrow, default)]
    previous_user_id: Field<'a>,
    #[serde(borrow, default)]
    previous_parent_user_id: Field<'a>,
}

impl Message<'_> {
    /// The ids by which the message names its sender, the old ones where it tells of a change.
    pub(super) fn senders(&self) -> Vec<Identity> {
        let mut senders = Vec::with_capacity(4);
        senders.extend(phone_or_user_id(&self.from));
        for id in [&self.from_user_id, &self.from_parent_user_id, &self.ycloud_user_id, &self.ycloud_parent_user_id] {
            senders.extend(user_id(id));
        }
        if let Object(Some(system)) = &self.system {
            senders.extend(user_id(&system.previous_user_id));
            senders.extend(user_id(&system.previous_parent_user_id));
        }
        senders
    }

    /// Whether WhatsApp itself wrote the message about the person: then `contacts` beside it are not its sender.
    pub(super) fn is_system(&self) -> bool {
        self.system.0.is_some() || self.kind.is("system")
    }

    /// What the message says. `Err` where it should say something and cannot be read.
    pub(super) fn content(&self) -> Result<Content, DecodeError> {
        if let Object(Some(system)) = &self.system {
            return system.content();
        }
        if let Object(Some(edit)) = &self.edit {
            let message = edit.message.0.as_ref();
            let text = message.and_then(|new| words(&new.text, [&new.image, &new.video, &new.document]));
            return Ok(text.map_or(Content::Nothing, |text| super::said(text, true, self.is_forwarded())));
        }
        if let Some(text) = words(&self.text, [&self.image, &self.video, &self.document]) {
            return Ok(super::said(text, false, self.is_forwarded()));
        }
        if let Object(Some(button)) = &self.button {
            return choice(&button.payload, &button.text);
        }
        if let Object(Some(interactive)) = &self.interactive {
            return interactive.content();
        }
        let holds_words = ["text", "button", "interactive"].iter().any(|kind| self.kind.is(kind));
        if holds_words { Err(DecodeError::NoContent) } else { Ok(Content::Nothing) }
    }

    fn is_forwarded(&self) -> bool {
        self.context.0.as_ref().is_some_and(|context| context.forwarded.0 || context.frequently_forwarded.0)
    }
}

/// A text, or the caption of what was sent instead.
fn words(text: &Object<Text<'_>>, media: [&Object<Media<'_>>; 3]) -> Option<String> {
    let text = text.0.as_ref().and_then(|text| text.body.words());
    text.or_else(|| media.into_iter().find_map(|media| media.0.as_ref()?.caption.words()))
}

fn choice(payload: &Field<'_>, title: &Field<'_>) -> Result<Content, DecodeError> {
    match (payload.owned(), title.owned()) {
        (None, None) => Err(DecodeError::NoContent),
        (payload, title) => Ok(Content::Button { payload, title }),
    }
}

impl Interactive<'_> {
    fn content(&self) -> Result<Content, DecodeError> {
        if let Some(reply) = self.button_reply.0.as_ref().or(self.list_reply.0.as_ref()) {
            return choice(&reply.id, &reply.title);
        }
        match &self.nfm_reply.0 {
            None => Ok(Content::Nothing),
            Some(flow) => {
                let answers = flow.response_json.text().ok_or(DecodeError::NoContent)?;
                let answers: Answers = serde_json::from_str(&answers).map_err(|_| DecodeError::NoContent)?;
                Ok(answers.preference().map_or(Content::Nothing, Content::Preference))
            }
        }
    }
}

impl System<'_> {
    fn content(&self) -> Result<Content, DecodeError> {
        let changes_identity = ["user_changed_number", "customer_changed_number", "user_changed_user_id"];
        if !changes_identity.iter().any(|kind| self.kind.is(kind)) {
            return Ok(Content::Nothing);
        }
        let mut now = Vec::new();
        now.extend(phone_or_user_id(&self.wa_id));
        now.extend(phone_or_user_id(&self.new_wa_id));
        now.extend(user_id(&self.user_id));
        now.extend(user_id(&self.parent_user_id));
        Identities::new(now).map(|now| Content::IdentityChange { now }).ok_or(DecodeError::NoContent)
    }
}

/// The answers of a flow, as far as they are about marketing. Flows are designed by businesses, so the usual names and
/// values are known and others say nothing.
#[derive(Default)]
struct Answers {
    stop: bool,
    resume: bool,
}

impl Answers {
    /// Stop wins: an answer that says both is no explicit wish for more.
    fn preference(&self) -> Option<Preference> {
        match (self.stop, self.resume) {
            (true, _) => Some(Preference::Stop),
            (false, true) => Some(Preference::Resume),
            (false, false) => None,
        }
    }

    fn hear(&mut self, question: &str, answer: &str) {
        let says = |words: &[&str]| words.contains(&answer);
        let yes = says(&["true", "yes", "1", "on"]);
        let no = says(&["false", "no", "0", "off"]);
        match question {
            "marketing" | "marketingmessages" | "marketingpreference" => {
                self.stop |= no || says(&["stop", "optout", "unsubscribe"]);
                self.resume |= yes || says(&["resume", "start", "optin", "subscribe"]);
            }
            // "No, I do not opt out" is no opt-in.
            "optout" | "unsubscribe" | "stopmarketing" => self.stop |= yes,
            "optin" | "subscribe" => {
                self.stop |= no;
                self.resume |= yes;
            }
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Answers;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Answers, A::Error> {
                let mut answers = Answers::default();
                while let Some((question, answer)) = map.next_entry::<String, Field<'_>>()? {
                    let question = letters(&question);
                    for answer in answer.0.iter().flat_map(|answer| answer.scalars()) {
                        let answer = match answer {
                            crate::wire::fields::FieldValue::Bool(answer) => answer.to_string(),
                            other => letters(&other.to_text().unwrap_or_default()),
                        };
                        answers.hear(&question, &answer);
                    }
                }
                Ok(answers)
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Letters and digits in lower case: `opt_out`, `optOut` and `Opt-Out` are one word.
fn letters(text: &str) -> String {
    text.chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether errors tell that the person has opted out at WhatsApp. By code alone: titles change.
pub(super) fn is_opted_out(errors: &List<ErrorCode<'_>>) -> bool {
    errors.objects().any(|error| error.code.text().is_some_and(|code| code.parse() == Ok(OPTED_OUT_CODE)))
}

/// One of the errors of a status.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorCode<'a> {
    #[serde(borrow, default)]
    pub(super) code: Field<'a>,
}

/// What WhatsApp's own marketing preference says; values that are not known say nothing.
pub(super) fn preference(category: &Field<'_>, value: &Field<'_>) -> Content {
    let concerns_marketing = category.text().is_none_or(|category| category == "marketing_messages");
    if concerns_marketing && value.is("stop") {
        Content::Preference(Preference::Stop)
    } else if concerns_marketing && value.is("resume") {
        Content::Preference(Preference::Resume)
    } else {
        Content::Nothing
    }
}

/// A WhatsApp id: the digits of a phone number, or a business-scoped id in its place.
pub(super) fn phone_or_user_id(field: &Field<'_>) -> Option<Identity> {
    match Identity::recognise(&field.text()?).ok()? {
        identity @ (Identity::Phone(_) | Identity::Bsuid(_)) => Some(identity),
        Identity::Email(_) | Identity::Ext(_) | Identity::Hash(_) => None,
    }
}

/// A business-scoped id or its parent.
pub(super) fn user_id(field: &Field<'_>) -> Option<Identity> {
    Identity::bsuid(&field.text()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answers: &str, expected: Option<Preference>) {
        let answers: Answers = serde_json::from_str(answers).expect("an object");
        assert_eq!(answers.preference(), expected);
    }

    #[test]
    fn a_flow_stops_marketing_by_the_usual_names_and_values() {
        for answers in [
            r#"{"flow_token":"prefs-1","marketing":"stop","reason":"too_many"}"#,
            r#"{"marketing":false}"#,
            r#"{"Marketing_Messages":"Opt-Out"}"#,
            r#"{"opt_out":true}"#,
            r#"{"optOut":"true"}"#,
            r#"{"unsubscribe":1}"#,
            r#"{"opt_in":false}"#,
            r#"{"marketing":["stop"]}"#,
            r#"{"opt_in":true,"opt_out":true}"#,
        ] {
            check(answers, Some(Preference::Stop));
        }
    }

    #[test]
    fn a_flow_resumes_marketing_only_in_so_many_words() {
        for answers in [r#"{"marketing":"resume"}"#, r#"{"marketing":true}"#, r#"{"opt_in":"yes"}"#] {
            check(answers, Some(Preference::Resume));
        }
        for answers in [r#"{"opt_out":false}"#, r#"{"marketing":"maybe"}"#, r#"{"marketing":null}"#, r#"{"color":"yes"}"#, "{}"] {
            check(answers, None);
        }
    }
}
