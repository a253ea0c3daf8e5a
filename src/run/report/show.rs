//! A report as lines for people, as CSV, as JSON, and as one printable page.

use super::Report;
use crate::run::explain::escaped;
use std::io::{self, Write};

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Csv,
    Json,
    Html,
}

/// One table of a report.
struct Section {
    title: &'static str,
    note: String,
    rows: Vec<(String, String)>,
}

/// Writes a report.
pub fn write(report: &Report, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Text => text(report, out),
        Format::Csv => csv(report, out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)
        }
        Format::Html => html(report, out),
    }?;
    out.flush()
}

fn sections(report: &Report) -> Vec<Section> {
    let counts = |counts: &super::Counts| counts.iter().map(|(name, count)| (name.clone(), count.to_string())).collect::<Vec<_>>();
    let section = |title, note: &str, rows| Section { title, note: note.to_owned(), rows };
    let row = |name: &str, value: u64| (name.to_owned(), value.to_string());
    let (out, after, effective) = (&report.opt_outs, &report.marketing_allowed_after_opt_out, &report.time_to_effective_seconds);
    let campaigns = out.by_campaign.iter().map(|campaign| {
        let name = match campaign.campaign.as_deref() {
            None => "no marketing send is known".to_owned(),
            Some("") => "sends without a campaign".to_owned(),
            Some(name) => name.to_owned(),
        };
        let rate =
            if campaign.sends > 0 { format!(" ({:.2} %)", campaign.opt_outs as f64 * 100.0 / campaign.sends as f64) } else { String::new() };
        let why: Vec<String> = campaign.by_feedback.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join(", ")) };
        (name, format!("{} of {} sends{rate}{why}", campaign.opt_outs, campaign.sends))
    });
    let seconds = |seconds: f64| format!("{seconds:.1} s");
    vec![
        section(
            "Opt-outs",
            "Written in the period.",
            vec![row("records", out.records), row("changed what stood for somebody", out.people), row("opt-ins", report.opt_ins)],
        ),
        section("Opt-outs by cause", "", counts(&out.by_cause)),
        section("Opt-outs by language", "", counts(&out.by_language)),
        section("Opt-outs by feedback", "Of those who were asked and said why.", counts(&out.by_feedback)),
        section("Opt-outs by campaign", "The last marketing send to the person before.", campaigns.collect()),
        section(
            "Time to effective",
            "From the person's act until its record was on opt-outs: from then on no send passes. Providers tell whole seconds.",
            vec![
                row("messages", effective.count),
                ("median".to_owned(), seconds(effective.p50)),
                ("95 of 100 within".to_owned(), seconds(effective.p95)),
                ("longest".to_owned(), seconds(effective.max)),
            ],
        ),
        section(
            "Marketing allowed after an opt-out",
            after.method,
            vec![
                row("allowed although an opt-out stood", after.count),
                row("sends decided again", after.decided_again),
                row("cannot be decided again", after.unprovable),
                row("differences of any kind", after.differences),
            ],
        ),
        section("Sends allowed, by reason", "", counts(&report.sends.allowed)),
        section("Sends suppressed, by reason", "", counts(&report.sends.suppressed)),
        section(
            "Reviews",
            "Now. Passing the deadline changes nothing: marketing stays suppressed.",
            vec![row("waiting", report.reviews.waiting), row("overdue", report.reviews.overdue)],
        ),
        section("Dead letters", "", counts(&report.dead_letters)),
    ]
}

/// What others wrote may hold anything, also what would move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} to {}", report.since, report.until)?;
    for section in sections(report) {
        writeln!(out, "\n{}", section.title)?;
        if section.rows.is_empty() {
            writeln!(out, "  none")?;
        }
        for (name, value) in &section.rows {
            writeln!(out, "  {:<40} {value}", plain(name))?;
        }
    }
    writeln!(out, "\n{}", report.marketing_allowed_after_opt_out.method)
}

fn csv(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(["section", "name", "value"])?;
    csv.write_record(["Period", "since", &report.since])?;
    csv.write_record(["Period", "until", &report.until])?;
    for section in sections(report) {
        for (name, value) in &section.rows {
            csv.write_record([section.title, &plain(name), value])?;
        }
    }
    csv.flush()
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:52em;padding:0 1em;color:#111;background:#fff}\
h1{font-size:1.4em}h2{font-size:1.1em;margin:1.6em 0 .2em}table{border-collapse:collapse;width:100%}section{break-inside:avoid}\
td{border-top:1px solid #ccc;padding:.2em .5em .2em 0;overflow-wrap:anywhere}td+td{text-align:right;white-space:nowrap}p{color:#555;margin:.2em 0}";

fn html(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let (since, until) = (escaped(&report.since), escaped(&report.until));
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Opt-outs, {since} to {until}</title><style>{STYLE}</style></head><body>\n\
         <h1>Opt-outs, {since} to {until}</h1>\n<p>Read back from the topics of stopgate.</p>"
    )?;
    for section in sections(report) {
        writeln!(out, "<section><h2>{}</h2><p>{}</p><table>", escaped(section.title), escaped(&section.note))?;
        if section.rows.is_empty() {
            writeln!(out, "<tr><td>none</td><td></td></tr>")?;
        }
        for (name, value) in &section.rows {
            writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escaped(name), escaped(value))?;
        }
        writeln!(out, "</table></section>")?;
    }
    writeln!(out, "</body></html>")
}
