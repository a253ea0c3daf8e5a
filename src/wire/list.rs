//! The unsubscribe list as a file: one state a line, as CSV or as JSON Lines.
//!
//! Columns: `business,channel,identity,subject,state,occurred_at,reason,source`. Lists of other programs are read too: columns
//! in any order, some absent, others unknown; commas, semicolons or tabs between them; a byte-order mark; the identity under
//! the names that such programs use. A cell never spans lines: a quote that is not closed spoils its own line and no other.

use serde::{Deserialize, Serialize};
use std::io::{self, Write};

/// What the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    Csv,
    JsonLines,
}

/// The columns, in the order in which they are written.
pub const COLUMNS: [&str; 8] = ["business", "channel", "identity", "subject", "state", "occurred_at", "reason", "source"];

/// The column of the identity under the names that other programs give it.
const IDENTITY_NAMES: [&str; 7] = ["to", "phone", "phone_number", "phonenumber", "number", "email", "recipient"];

/// One line as given. What is absent or empty is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Given {
    pub business: Option<String>,
    pub channel: Option<String>,
    #[serde(
        alias = "to",
        alias = "phone",
        alias = "phone_number",
        alias = "phonenumber",
        alias = "number",
        alias = "email",
        alias = "recipient"
    )]
    pub identity: Option<String>,
    pub subject: Option<String>,
    pub state: Option<String>,
    #[serde(deserialize_with = "text_or_number")]
    pub occurred_at: Option<String>,
    pub reason: Option<String>,
    pub source: Option<String>,
}

/// Why a line cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("not UTF-8: save the list as UTF-8")]
    NotUtf8,
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("it has {found} cells, the first line names {named}")]
    Cells { named: usize, found: usize },
    #[error("no JSON object with texts as values")]
    NotJson,
    #[error("it is too long")]
    TooLong,
}

/// Why a file cannot be read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the first line must name the columns, the identity among them: business,channel,identity,subject,state,occurred_at,reason,source")]
    NoIdentity,
    #[error("the first line names a column twice")]
    Twice,
    #[error("the first line cannot be read: {0}")]
    Line(LineError),
}

/// Reads lines, of which the first tells what they are.
pub enum Lines {
    /// Which of [`COLUMNS`] each cell is.
    Csv {
        columns: Vec<Option<usize>>,
        cells: Box<Cells>,
    },
    JsonLines,
}

impl Lines {
    /// Understands the first line, which is a row itself where the file is JSON Lines. `format`: what the file is said to be.
    pub fn from_first(first: &[u8], format: Option<ListFormat>) -> Result<Self, HeaderError> {
        let first = without_mark(first);
        match format.unwrap_or(if first.trim_ascii_start().first() == Some(&b'{') { ListFormat::JsonLines } else { ListFormat::Csv }) {
            ListFormat::JsonLines => Ok(Self::JsonLines),
            ListFormat::Csv => {
                let count = |delimiter: u8| first.iter().filter(|byte| **byte == delimiter).count();
                let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|delimiter| (count(*delimiter), *delimiter == b',')).unwrap_or(b',');
                let mut cells = Box::new(Cells::between(delimiter));
                let columns: Vec<Option<usize>> = cells.of(first).map_err(HeaderError::Line)?.map(column).collect();
                let twice = (0..COLUMNS.len()).any(|column| columns.iter().filter(|known| **known == Some(column)).count() > 1);
                match (twice, columns.contains(&Some(IDENTITY))) {
                    (true, _) => Err(HeaderError::Twice),
                    (false, false) => Err(HeaderError::NoIdentity),
                    (false, true) => Ok(Self::Csv { columns, cells }),
                }
            }
        }
    }

    /// Whether the first line is a row.
    pub fn first_is_row(&self) -> bool {
        match self {
            Self::Csv { .. } => false,
            Self::JsonLines => true,
        }
    }

    /// Reads one line; `None` where it is blank.
    pub fn read(&mut self, line: &[u8]) -> Result<Option<Given>, LineError> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let mut given = match self {
            Self::JsonLines => {
                let line = without_mark(line); // the first line is a row too
                std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
                serde_json::from_slice(line).map_err(|_| LineError::NotJson)?
            }
            Self::Csv { columns, cells } => {
                let cells = cells.of(line)?;
                if cells.len() != columns.len() {
                    return Err(LineError::Cells { named: columns.len(), found: cells.len() });
                }
                let mut given = Given::default();
                for (cell, column) in cells.zip(columns) {
                    if let Some(place) = column.and_then(|column| given.places().into_iter().nth(column)) {
                        *place = Some(cell.to_owned());
                    }
                }
                given
            }
        };
        for place in given.places() {
            *place = place.take().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        }
        Ok(Some(given))
    }
}

const IDENTITY: usize = 2;

impl Given {
    /// In the order of [`COLUMNS`].
    fn places(&mut self) -> [&mut Option<String>; COLUMNS.len()] {
        let Self { business, channel, identity, subject, state, occurred_at, reason, source } = self;
        [business, channel, identity, subject, state, occurred_at, reason, source]
    }
}

fn column(name: &str) -> Option<usize> {
    let name = name.trim().to_lowercase().replace([' ', '-'], "_");
    COLUMNS.iter().position(|known| *known == name).or_else(|| IDENTITY_NAMES.contains(&name.as_str()).then_some(IDENTITY))
}

fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
}

/// Cuts lines into cells.
pub struct Cells {
    reader: csv_core::Reader,
    delimiter: u8,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    fn between(delimiter: u8) -> Self {
        Self { reader: csv_core::ReaderBuilder::new().delimiter(delimiter).build(), delimiter, text: Vec::new(), ends: Vec::new() }
    }

    /// The cells of one line.
    fn of(&mut self, line: &[u8]) -> Result<impl ExactSizeIterator<Item = &str>, LineError> {
        if std::str::from_utf8(line).is_err() {
            return Err(LineError::NotUtf8);
        }
        // A quote within a quoted cell is doubled: an odd number of them leaves one open.
        if !line.iter().filter(|byte| **byte == b'"').count().is_multiple_of(2) {
            return Err(LineError::OpenQuote);
        }
        // No cell is longer than what it is written with, and there is one more of them than delimiters.
        self.text.resize(line.len(), 0);
        self.ends.resize(line.iter().filter(|byte| **byte == self.delimiter).count() + 1, 0);
        self.reader.reset();
        let (_, _, text, ends) = self.reader.read_record(line, &mut self.text, &mut self.ends);
        // The end of the input ends the last cell.
        let (_, _, _, last) =
            self.reader.read_record(&[], self.text.get_mut(text..).unwrap_or_default(), self.ends.get_mut(ends..).unwrap_or_default());
        let (text, ends) = (&self.text, self.ends.get(..ends + last).unwrap_or_default());
        Ok(ends.iter().enumerate().map(move |(cell, end)| {
            let from = cell.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or_default();
            // Cut at delimiters and quotes, which are characters of their own.
            text.get(from..*end).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
        }))
    }
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) => Ok(Some(text)),
        serde_json::Value::Number(number) => Ok(Some(number.to_string())),
        serde_json::Value::Bool(_) | serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
            Err(serde::de::Error::custom("a time is a text or a number"))
        }
    }
}

/// One state, to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub business: String,
    pub channel: String,
    pub identity: String,
    pub subject: String,
    pub state: &'static str,
    /// RFC 3339.
    pub occurred_at: String,
    pub reason: String,
    pub source: String,
}

/// Writes a list.
pub enum ListWriter<W: Write> {
    Csv(Box<csv::Writer<W>>),
    JsonLines(W),
}

impl<W: Write> ListWriter<W> {
    /// Begins a list; that of CSV names its columns.
    pub fn new(format: ListFormat, out: W) -> io::Result<Self> {
        Ok(match format {
            ListFormat::JsonLines => Self::JsonLines(out),
            ListFormat::Csv => {
                let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(out);
                csv.write_record(COLUMNS)?;
                Self::Csv(Box::new(csv))
            }
        })
    }

    /// Writes one row. What would end the line becomes a space.
    pub fn write(&mut self, row: &Row) -> io::Result<()> {
        match self {
            Self::JsonLines(out) => {
                serde_json::to_writer(&mut *out, row)?;
                out.write_all(b"\n")
            }
            Self::Csv(csv) => {
                let Row { business, channel, identity, subject, state, occurred_at, reason, source } = row;
                let cells = [business, channel, identity, subject, *state, occurred_at, reason, source].map(|cell: &str| one_line(cell));
                Ok(csv.write_record(&cells)?)
            }
        }
    }

    /// Ends the list.
    pub fn finish(mut self) -> io::Result<()> {
        match &mut self {
            Self::JsonLines(out) => out.flush(),
            Self::Csv(csv) => csv.flush(),
        }
    }
}

fn one_line(cell: &str) -> String {
    cell.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<Result<Option<Given>, LineError>> {
        let mut lines = text.lines();
        let first = lines.next().expect("a first line").as_bytes();
        let mut reader = Lines::from_first(first, None).expect("a list");
        reader.first_is_row().then_some(first).into_iter().chain(lines.map(str::as_bytes)).map(|line| reader.read(line)).collect()
    }

    fn identity(read: &Result<Option<Given>, LineError>) -> Option<&str> {
        read.as_ref().ok()?.as_ref()?.identity.as_deref()
    }

    #[test]
    fn lists_of_other_programs_are_read() {
        for text in [
            "\u{feff}Phone Number;State\n+12025550143;opted_out",
            "email\tcampaign\n+12025550143\tx",
            "identity\n+12025550143",
            "state,identity\nout, +12025550143 ",
            "\"to\",\"reason\"\n\"+12025550143\",\"said \"\"no\"\"; thrice, loudly\"",
            "{\"to\":\"+12025550143\",\"occurred_at\":1793527200,\"campaign\":7}",
        ] {
            assert_eq!(identity(&read(text)[0]), Some("+12025550143"), "{text:?}");
        }
    }

    #[test]
    fn a_bad_line_spoils_itself_alone() {
        let lines = read("identity,reason\n+12025550101,\"open\n+12025550102,fine\nlonely\n\n+12025550103,a,b\n+12025550104,");
        assert_eq!(lines[0], Err(LineError::OpenQuote));
        assert_eq!(identity(&lines[1]), Some("+12025550102"));
        assert_eq!(lines[2], Err(LineError::Cells { named: 2, found: 1 }));
        assert_eq!(lines[3], Ok(None));
        assert_eq!(lines[4], Err(LineError::Cells { named: 2, found: 3 }));
        assert_eq!(lines[5].as_ref().expect("read").as_ref().expect("a row").reason, None);
        let mut reader = Lines::from_first(b"identity", None).expect("a list");
        assert_eq!(reader.read(b"caf\xe9"), Err(LineError::NotUtf8));
        assert_eq!({ Lines::JsonLines }.read(b"[1]"), Err(LineError::NotJson));
    }

    #[test]
    fn a_file_that_is_no_list_is_told_from_its_first_line() {
        for (first, expected) in [
            (&b"name,surname"[..], HeaderError::NoIdentity),
            (b"phone,identity", HeaderError::Twice),
            (b"", HeaderError::NoIdentity),
            (b"\xff\xfei\0d\0", HeaderError::Line(LineError::NotUtf8)),
            (b"\"identity", HeaderError::Line(LineError::OpenQuote)),
        ] {
            assert_eq!(Lines::from_first(first, None).err(), Some(expected), "{first:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(cells in prop::array::uniform7("[^\\p{Cc}\u{feff}]{0,12}"), csv in any::<bool>()) {
            let [business, channel, identity, subject, occurred_at, reason, source] = cells.map(|cell| cell.trim().to_owned());
            let row = Row { business, channel, identity, subject, state: "opted-out", occurred_at, reason, source };
            let mut bytes = Vec::new();
            let mut writer = ListWriter::new(if csv { ListFormat::Csv } else { ListFormat::JsonLines }, &mut bytes).expect("written");
            writer.write(&row).expect("written");
            writer.finish().expect("written");
            let text = String::from_utf8(bytes).expect("UTF-8");
            let all: Vec<&str> = text.split_terminator('\n').collect();
            let mut reader = Lines::from_first(all[0].as_bytes(), None).expect("a list");
            let given = reader.read(all.last().expect("a row").as_bytes()).expect("read").expect("a row");
            let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
            prop_assert_eq!(given, Given {
                business: some(&row.business), channel: some(&row.channel), identity: some(&row.identity), subject: some(&row.subject),
                state: Some("opted-out".into()), occurred_at: some(&row.occurred_at), reason: some(&row.reason), source: some(&row.source),
            });
        }

        #[test]
        fn any_bytes_are_survived(first in prop::collection::vec(any::<u8>(), 0..40), line in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(mut lines) = Lines::from_first(&first, None) {
                let _survived = lines.read(&line).is_ok();
            }
        }
    }
}
