//! `stopgate explain`: one person's story as lines for people, as JSON, and as one printable page.

use super::history::{Event, Happened, Story};
use std::io::{self, Write};

fn time(event: &Event) -> String {
    let time = event.at_ms.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    time.map_or_else(|| "time unknown".to_owned(), |time| format!("{time:.0}"))
}

fn words(happened: Happened) -> &'static str {
    match happened {
        Happened::Asked => "asked",
        Happened::Recorded => "recorded: counts from here on",
        Happened::Erased => "erased",
        Happened::Answered => "answered",
        Happened::Feedback => "said why",
        Happened::Allowed => "send allowed",
        Happened::Suppressed => "send suppressed",
    }
}

fn facts(event: &Event) -> impl Iterator<Item = (&str, &str)> {
    event.facts.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}

/// Lines for people.
pub fn text(story: &Story, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", story.person.join(", "))?;
    for event in &story.events {
        writeln!(out, "\n{}  {}  ({} on {}, {})", time(event), words(event.event), event.business, event.channel, event.position)?;
        for (name, value) in facts(event) {
            // A text may hold anything, also what would move the cursor.
            let shown: String = value.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
            writeln!(out, "    {name}: {shown}")?;
        }
    }
    out.flush()
}

/// One JSON object.
pub fn json(story: &Story, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, story)?;
    writeln!(out)?;
    out.flush()
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:52em;padding:0 1em;color:#111;background:#fff}\
h1{font-size:1.4em}section{border-left:4px solid #bbb;padding:.2em 1em;margin:1em 0;break-inside:avoid}\
.suppressed,.recorded{border-color:#b00}.allowed{border-color:#080}h2{font-size:1em;margin:0}small{color:#555}\
dl{display:grid;grid-template-columns:9em 1fr;margin:.3em 0}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}mark{background:#fe8}";

/// One page that needs nothing else.
pub fn html(story: &Story, out: &mut impl Write) -> io::Result<()> {
    let person = escaped(&story.person.join(", "));
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>Consent of {person}</title><style>{STYLE}</style></head><body>\n<h1>Consent of {person}</h1>\n\
         <p>Read back from the topics of stopgate, in order of time. Positions are topic-partition@offset: each can be read with any Kafka tool.</p>\n"
    )?;
    for event in &story.events {
        let class = match event.event {
            Happened::Asked => "asked",
            Happened::Recorded | Happened::Erased => "recorded",
            Happened::Answered | Happened::Feedback => "answered",
            Happened::Allowed => "allowed",
            Happened::Suppressed => "suppressed",
        };
        writeln!(
            out,
            "<section class=\"{class}\"><h2>{}: {}</h2><small>{} on {}, {}</small><dl>",
            escaped(&time(event)),
            words(event.event),
            escaped(&event.business),
            escaped(&event.channel),
            escaped(&event.position)
        )?;
        let matched = event.facts.get("matched").and_then(|value| value.as_str());
        for (name, value) in facts(event).filter(|(name, _)| *name != "matched") {
            let shown = match matched.filter(|_| name == "text").and_then(|words| value.split_once(words).zip(Some(words))) {
                Some(((before, after), words)) => format!("{}<mark>{}</mark>{}", escaped(before), escaped(words), escaped(after)),
                None => escaped(value),
            };
            writeln!(out, "<dt>{}</dt><dd>{shown}</dd>", escaped(name))?;
        }
        writeln!(out, "</dl></section>")?;
    }
    writeln!(out, "</body></html>")?;
    out.flush()
}

pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_text_on_the_page_and_their_words_are_marked() {
        let facts = serde_json::json!({ "text": "<script>STOP</script>", "matched": "STOP" }).as_object().expect("an object").clone();
        let (business, channel, position) = ("a&b".to_owned(), "sms".to_owned(), "opt-outs-0@1".to_owned());
        let event = Event { at_ms: Some(0), event: Happened::Asked, position, business, channel, facts };
        let mut page = Vec::new();
        html(&Story { person: vec!["ext:\"1\"".to_owned()], events: vec![event] }, &mut page).expect("written");
        let page = String::from_utf8(page).expect("text");
        assert!(page.contains("&lt;script&gt;<mark>STOP</mark>&lt;/script&gt;") && !page.contains("<script>"), "{page}");
        assert!(page.contains("a&amp;b") && page.contains("ext:&quot;1&quot;") && !page.contains("http://") && !page.contains("src="));
    }
}
