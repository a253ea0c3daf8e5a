//! The topics of one test, a configuration that names them, and the words for what happens on them.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;
use serde_json::{Value, json};

use super::broker::Broker;
use super::kafka::{Isolation, Kafka, Reader, Received, Record};
use super::murmur2;
use super::records::{ConsentRecord, DecisionBlock, OPTED_OUT, decode};
use super::service::Start;

/// The business of most tests.
pub const BUSINESS: &str = "acme";

/// The topics and groups of one test; nobody else uses them.
#[derive(Clone, Debug)]
pub struct Names {
    pub inbound: String,
    pub opt_outs: String,
    pub replies: String,
    pub reviews: String,
    pub sends: String,
    pub allowed: String,
    pub suppressed: String,
    pub decisions: String,
    pub dead_letters: String,
    /// Made by the tests that need them.
    pub feedback: String,
    pub guidance: String,
    pub detect_group: String,
    pub filter_group: String,
}

/// How many partitions the topics of a test have, and how its opt-outs topic is set up.
#[derive(Clone, Debug)]
pub struct Layout {
    pub inbound: i32,
    pub opt_outs: i32,
    pub sends: i32,
    pub opt_outs_settings: Vec<(&'static str, &'static str)>,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout {
            inbound: 2,
            opt_outs: 3,
            sends: 3,
            opt_outs_settings: vec![
                ("cleanup.policy", "compact"),
                ("min.compaction.lag.ms", "157784760000"),
                ("message.timestamp.type", "LogAppendTime"),
            ],
        }
    }
}

/// One test's own corner of the broker.
pub struct World {
    pub kafka: Kafka,
    pub names: Names,
    pub layout: Layout,
    bootstrap: String,
    unique: String,
    /// More of the configuration file: what stands before its tables, and behind them.
    settings: String,
    tables: String,
}

impl World {
    /// Topics with the default layout.
    pub fn new(broker: &Broker, name: &str) -> World {
        World::with(broker, name, Layout::default())
    }

    /// Topics with this layout.
    pub fn with(broker: &Broker, name: &str, layout: Layout) -> World {
        let world = World::empty(broker, name, layout);
        let (kafka, names, layout) = (&world.kafka, &world.names, &world.layout);
        // As the tests' raw reader wants the outputs.
        let raw: &[(&str, &str)] = &[("compression.type", "uncompressed")];
        kafka.create_all(&[
            (&names.inbound, layout.inbound, &[]),
            (&names.opt_outs, layout.opt_outs, &layout.opt_outs_settings),
            (&names.sends, layout.sends, &[]),
            (&names.allowed, layout.sends, raw),
            (&names.suppressed, layout.sends, raw),
            (&names.replies, 2, &[]),
            (&names.reviews, 2, &[]),
            (&names.decisions, 2, &[]),
            (&names.dead_letters, 2, &[]),
        ]);
        world
    }

    /// Names only; no topic exists.
    pub fn empty(broker: &Broker, name: &str, layout: Layout) -> World {
        let unique = broker.unique(name);
        let topic = |suffix: &str| format!("{unique}.{suffix}");
        let names = Names {
            inbound: topic("inbound-messages"),
            opt_outs: topic("opt-outs"),
            replies: topic("replies"),
            reviews: topic("reviews"),
            sends: topic("sends"),
            allowed: topic("sends.allowed"),
            suppressed: topic("sends.suppressed"),
            decisions: topic("decisions"),
            dead_letters: topic("dead-letters"),
            feedback: topic("feedback"),
            guidance: topic("guidance"),
            detect_group: topic("detect"),
            filter_group: topic("filter"),
        };
        let bootstrap = broker.bootstrap().to_owned();
        World { kafka: broker.kafka(), names, layout, bootstrap, unique, settings: String::new(), tables: String::new() }
    }

    /// Adds a line to the configuration file, above its tables.
    pub fn setting(mut self, line: &str) -> World {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// Adds tables to the configuration file.
    pub fn tables(mut self, text: &str) -> World {
        self.tables.push_str(text);
        self.tables.push('\n');
        self
    }

    /// Has the program reach the broker by this address; the test itself goes on reaching it as before.
    pub fn through(mut self, address: &str) -> World {
        address.clone_into(&mut self.bootstrap);
        self
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The configuration file.
    pub fn config(&self) -> String {
        let names = &self.names;
        let mut text = self.settings.clone();
        let mut table = |head: &str, fields: &[(&str, &str)]| {
            text.push_str(&format!("\n{head}\n"));
            fields.iter().for_each(|(name, value)| text.push_str(&format!("{name} = \"{value}\"\n")));
        };
        table("[groups]", &[("detect", &names.detect_group), ("filter", &names.filter_group)]);
        table(
            "[topics]",
            &[
                ("opt_outs", &names.opt_outs),
                ("replies", &names.replies),
                ("reviews", &names.reviews),
                ("decisions", &names.decisions),
                ("dead_letters", &names.dead_letters),
                ("feedback", &names.feedback),
                ("guidance", &names.guidance),
            ],
        );
        table("[[inbound]]", &[("topic", &names.inbound)]);
        let sends = [("topic", &*names.sends), ("allowed", &names.allowed), ("suppressed", &names.suppressed)];
        table("[[sends]]", &sends);
        text + &self.tables
    }

    /// A serving verb on these topics, as the instance of that name.
    pub fn serving(&self, verb: &str, instance: &str) -> Start {
        Start::serving(verb).config(&self.config()).arg("--bootstrap", &self.bootstrap).arg("--instance", &format!("{}-{instance}", self.unique))
    }

    /// A verb that ends by itself, on these topics.
    pub fn verb(&self, verb: &str) -> Start {
        Start::verb(verb).config(&self.config()).arg("--bootstrap", &self.bootstrap)
    }

    // --- what people do ---

    /// A person writes to the business on WhatsApp. Where the record lies, once acknowledged.
    pub fn says(&self, from: &str, text: &str) -> (i32, i64) {
        self.kafka.produce(&self.names.inbound, message(from, text, now_ms()))
    }

    /// An opt-out or opt-in as another writer of the topic would write it; its key and position.
    pub fn consent(&self, identity: &str, subject: &str, state: i32, occurred_at_ms: i64) -> (String, (i32, i64)) {
        let record = self.consent_record(identity, subject, state, occurred_at_ms);
        let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
        (key, self.kafka.produce(&self.names.opt_outs, record))
    }

    pub fn consent_record(&self, identity: &str, subject: &str, state: i32, occurred_at_ms: i64) -> Record {
        let value = ConsentRecord { state, occurred_at_ms, cause: 6, evidence: None, changed_state: true };
        let key = consent_key(BUSINESS, "whatsapp", identity, subject);
        Record::new(key, value.encode_to_vec()).to(self.partition_of(BUSINESS, identity))
    }

    /// An opt-out of marketing, now.
    pub fn opts_out(&self, phone: &str) -> (i32, i64) {
        self.consent(&format!("phone:{phone}"), "marketing", OPTED_OUT, now_ms()).1
    }

    /// The opt-outs partition of a person, by the tests' own hash.
    pub fn partition_of(&self, business: &str, identity: &str) -> i32 {
        murmur2::partition(format!("{business}|{identity}").as_bytes(), self.layout.opt_outs)
    }

    /// A marketing send is asked for; where the record lies.
    pub fn asks(&self, id: &str, to: &str) -> (i32, i64) {
        self.kafka.produce(&self.names.sends, send(id, to, "marketing"))
    }

    // --- what the program does ---

    pub fn outcomes(&self) -> Outcomes {
        let reader = |topic: &str| self.kafka.reader(topic, Isolation::Committed);
        let names = &self.names;
        Outcomes { allowed: reader(&names.allowed), suppressed: reader(&names.suppressed), dead: reader(&names.dead_letters) }
    }

    /// The decision blocks of the sends topic, by partition, in order.
    pub fn blocks(&self) -> BTreeMap<u32, Vec<DecisionBlock>> {
        let mut blocks: BTreeMap<u32, Vec<DecisionBlock>> = BTreeMap::new();
        for record in self.kafka.read_committed(&self.names.decisions) {
            let block: DecisionBlock = decode(&record);
            assert_eq!(record.key_text(), format!("{}-{}", block.topic, block.partition), "key of a decision block");
            assert_eq!(block.topic, self.names.sends);
            blocks.entry(block.partition).or_default().push(block);
        }
        blocks
    }

    /// How far everybody has come, for the text of a failure: of each partition, ends and committed positions; of the
    /// outputs, what committed readers may reach and what there is, which differ while a transaction is open.
    pub fn progress(&self) -> String {
        let (kafka, names) = (&self.kafka, &self.names);
        let mut text = String::new();
        for (group, topic) in [(&names.detect_group, &names.inbound), (&names.filter_group, &names.sends)] {
            let (committed, ends) = (kafka.committed(group, topic), kafka.ends(topic));
            text.push_str(&format!("\n{topic}: committed {committed:?} of {ends:?}"));
        }
        for topic in [&names.opt_outs, &names.replies, &names.allowed, &names.suppressed, &names.decisions] {
            let stable: Vec<i64> = kafka.bounds(topic, Isolation::Committed).iter().map(|(_, end)| *end).collect();
            text.push_str(&format!("\n{topic}: readable up to {stable:?} of {:?}", kafka.ends(topic)));
        }
        text
    }

    /// Checks that the committed outcomes are the inputs, each once and in order, and that the decision blocks tile
    /// them with the right counts.
    #[track_caller]
    pub fn assert_every_send_has_one_outcome(&self) {
        let inputs = self.kafka.read_committed(&self.names.sends);
        let allowed = self.kafka.read_committed(&self.names.allowed);
        let suppressed = self.kafka.read_committed(&self.names.suppressed);
        let dead: Vec<Received> = self
            .kafka
            .read_committed(&self.names.dead_letters)
            .into_iter()
            .filter(|record| record.header("stopgate-stage").as_deref() == Some("filter"))
            .collect();
        assert_eq!(allowed.len() + suppressed.len() + dead.len(), inputs.len(), "outcomes against inputs");
        let blocks = self.blocks();
        for partition in 0..self.layout.sends {
            let of =
                |records: &[Received]| -> Vec<Received> { records.iter().filter(|record| record.partition == partition).cloned().collect() };
            let (inputs, allowed, suppressed) = (of(&inputs), of(&allowed), of(&suppressed));
            let sources: Vec<String> = suppressed.iter().filter_map(|record| record.header("stopgate-source")).collect();
            let dead: Vec<String> = dead.iter().filter_map(|record| record.header("stopgate-source")).collect();
            // In lockstep: an input is the next suppressed one, or a dead letter, or else the next allowed one.
            let (mut next_allowed, mut next_suppressed) = (allowed.iter(), suppressed.iter().zip(&sources).peekable());
            let mut of_offset: BTreeMap<i64, &str> = BTreeMap::new();
            for input in &inputs {
                let source = format!("{}-{}@{}", self.names.sends, partition, input.offset);
                if next_suppressed.peek().is_some_and(|(_, found)| **found == source) {
                    let (record, _) = next_suppressed.next().unwrap_or_else(|| unreachable!("peeked"));
                    assert_eq!((&record.key, &record.value), (&input.key, &input.value), "a suppressed send, {source}");
                    of_offset.insert(input.offset, "suppressed");
                } else if dead.contains(&source) {
                    of_offset.insert(input.offset, "dead");
                } else {
                    let record = next_allowed.next().unwrap_or_else(|| panic!("no outcome of {source}"));
                    assert_eq!(
                        (&record.key, &record.value, &record.headers, record.timestamp),
                        (&input.key, &input.value, &input.headers, input.timestamp),
                        "the allowed send that follows in partition {partition}, against {source}"
                    );
                    of_offset.insert(input.offset, "allowed");
                }
            }
            assert!(next_allowed.next().is_none() && next_suppressed.next().is_none(), "outcomes without an input");
            let of_partition = blocks.get(&u32::try_from(partition).unwrap_or_default());
            self.check_tiles(partition, of_partition.map_or(&[][..], Vec::as_slice), &of_offset);
        }
    }

    #[track_caller]
    fn check_tiles(&self, partition: i32, blocks: &[DecisionBlock], outcomes: &BTreeMap<i64, &str>) {
        let mut next = 0;
        for block in blocks {
            assert_eq!(block.first_offset, next, "the first offset of a block of partition {partition}");
            assert!(block.end_offset > block.first_offset, "an empty block of partition {partition}: {block:?}");
            assert_eq!(block.as_of.len(), usize::try_from(self.layout.opt_outs).unwrap_or_default(), "{block:?}");
            assert!(!block.rules_version.is_empty(), "{block:?}");
            let sum = |counts: &[super::records::ReasonCount]| counts.iter().map(|count| count.count).sum::<u64>();
            let (first, end) = (block.first_offset.cast_signed(), block.end_offset.cast_signed());
            let count = |kind: &str| outcomes.range(first..end).filter(|(_, found)| **found == kind).count() as u64;
            let said = (sum(&block.allowed), sum(&block.suppressed), sum(&block.dead_letters));
            assert_eq!(said, (count("allowed"), count("suppressed"), count("dead")), "counts of {block:?}");
            next = block.end_offset;
        }
        let last = outcomes.keys().next_back().map_or(0, |offset| offset.cast_unsigned() + 1);
        assert!(next >= last, "partition {partition} is decided up to {last}, its blocks end at {next}");
    }
}

/// Readers of everything that the filter writes for a send.
pub struct Outcomes {
    pub allowed: Reader,
    pub suppressed: Reader,
    pub dead: Reader,
}

/// What became of a send.
#[derive(Clone, Debug)]
pub enum Outcome {
    Allowed(Received),
    Suppressed(Received),
    Dead(Received),
}

impl Outcomes {
    /// The outcome of the send with this id, if there is one by now.
    pub fn of(&self, id: &str) -> Option<Outcome> {
        let find = |reader: &Reader| reader.look(|record| id_of(record).as_deref() == Some(id));
        find(&self.allowed)
            .map(Outcome::Allowed)
            .or_else(|| find(&self.suppressed).map(Outcome::Suppressed))
            .or_else(|| find(&self.dead).map(Outcome::Dead))
    }

    /// Waits for the outcome of the send with this id.
    #[track_caller]
    pub fn await_of(&self, id: &str) -> Outcome {
        super::wait::wait_for(&format!("the outcome of send {id}"), super::wait::DEADLINE, || {
            self.of(id).ok_or_else(|| {
                let counts = [&self.allowed, &self.suppressed, &self.dead].map(|reader| reader.count());
                format!("allowed, suppressed, dead: {counts:?}")
            })
        })
    }

    #[track_caller]
    pub fn await_allowed(&self, id: &str) -> Received {
        match self.await_of(id) {
            Outcome::Allowed(record) => record,
            other => panic!("send {id} should be allowed: {other:?}"),
        }
    }

    #[track_caller]
    pub fn await_suppressed(&self, id: &str) -> Received {
        match self.await_of(id) {
            Outcome::Suppressed(record) => record,
            other => panic!("send {id} should be suppressed: {other:?}"),
        }
    }

    /// How many outcomes there are by now.
    pub fn count(&self) -> usize {
        self.allowed.count() + self.suppressed.count() + self.dead.count()
    }
}

/// The `id` of a JSON send.
pub fn id_of(record: &Received) -> Option<String> {
    let value: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
    Some(value.get("id")?.as_str()?.to_owned())
}

/// A native JSON message of a person.
pub fn message(from: &str, text: &str, received_at_ms: i64) -> Record {
    let body = json!({
        "id": format!("m-{from}-{received_at_ms}"), "business": BUSINESS, "channel": "whatsapp",
        "from": from, "to": "+12025550100", "text": text, "received_at": received_at_ms,
    });
    Record::new(from, body.to_string())
}

/// A JSON send.
pub fn send(id: &str, to: &str, category: &str) -> Record {
    let body = json!({ "id": id, "business": BUSINESS, "channel": "whatsapp", "to": to, "category": category });
    Record::new(to, body.to_string())
}

/// A key of the opt-outs topic.
pub fn consent_key(business: &str, channel: &str, identity: &str, subject: &str) -> String {
    format!("{business}|{channel}|{identity}|{subject}")
}

/// A phone number that belongs to nobody: the n-th of a reserved range.
pub fn phone(n: usize) -> String {
    format!("+1202555{n:04}")
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or_default()
}
