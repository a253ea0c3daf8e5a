//! Everybody else: persons who write, campaigns that send, third parties who write opt-outs, operators.

use super::log::Ending;
use super::person::{Act, Note, OWN, PERSONS, identities};
use super::world::{INBOUND, OPT_OUTS, SENDS, World};
use super::{Fault, Mutation};
use prost::Message as _;
use std::collections::BTreeMap;
use stopgate::domain::business::Businesses;
use stopgate::domain::consent::Position;
use stopgate::domain::identity::Identity;
use stopgate::domain::key::{Channel, ConsentKey, Subject};
use stopgate::domain::suppression::PrintKey;
use stopgate::stage::apply::Written;
use stopgate::stage::heal::{Healing, again};
use stopgate::wire::consent::encode_key;
use stopgate::wire::proto;

/// Records younger than this many steps are not compacted: longer than any reader needs from the beginning to the end.
const COMPACTION_LAG: u64 = 400;

/// What third parties have open.
#[derive(Default)]
pub struct Outside {
    open: Vec<(usize, u64)>,
    transactions: u64,
    /// Messages that a redelivery may repeat: partition, value, note.
    sent: Vec<(u32, Vec<u8>, Note)>,
    /// When the topic was healed: step and tick.
    heals: Vec<(u64, u64)>,
}

impl Outside {
    /// One thing happens.
    pub fn act(&mut self, world: &mut World) {
        match world.random.below(20) {
            0..=6 => self.message(world),
            7..=15 => send(world),
            16..=17 => self.third_party(world),
            _ => self.end_some(world),
        }
    }

    fn message(&mut self, world: &mut World) {
        if world.strikes(Fault::Duplicates, 8) && !self.sent.is_empty() {
            let (partition, value, note) = self.sent[world.random.below(self.sent.len() as u64) as usize].clone();
            self.append_message(world, partition, value, note);
            return;
        }
        let person = world.random.below(PERSONS as u64) as usize;
        let mut partition = person as u32 % 2;
        if person >= OWN && world.random.one_in(2) {
            partition = world.random.below(u64::from(world.log.partitions(INBOUND))) as u32;
        }
        if world.random.one_in(15) {
            self.append_message(world, partition, b"{\"neither\": \"sender nor words\"}".to_vec(), Note::Nothing);
            return;
        }
        let (text, wish) = match world.random.below(10) {
            0..=4 => ("STOP", Some(true)),
            5..=7 => ("START", Some(false)),
            _ => ("where is my parcel?", None),
        };
        let now = world.now_ms();
        // Now and then the act is older, or says so: messages come late and out of order.
        let said = if world.strikes(Fault::OutOfOrder, 3) { now - world.random.below(300_000) as i64 } else { now };
        let from: Vec<String> = identities(person);
        let id = world.random.bits();
        let body = serde_json::json!({
            "id": format!("m{id}"), "business": "acme", "channel": "whatsapp", "from": from, "to": "+12025550199", "text": text, "received_at": said,
        });
        let acts = wish.map(|out| {
            let subject = if out { "marketing" } else { "all" };
            let key = |identity: &String| ("whatsapp".to_owned(), identity.clone(), subject.to_owned());
            from.iter().map(|identity| (key(identity), Act { at_ms: said, out, source: (true, partition, 0) })).collect()
        });
        let note = Note::Message { id, person, acts: acts.unwrap_or_default() };
        self.sent.push((partition, body.to_string().into_bytes(), note.clone()));
        self.append_message(world, partition, body.to_string().into_bytes(), note);
    }

    fn append_message(&mut self, world: &mut World, partition: u32, value: Vec<u8>, mut note: Note) {
        let offset = world.log.topic(INBOUND).partitions[partition as usize].end;
        let mut told = ("nonsense".to_owned(), None);
        if let Note::Message { person, acts, .. } = &mut note {
            for (_, act) in acts.iter_mut() {
                act.source = (true, partition, offset);
            }
            told = (format!("{:?}", acts.first().map(|(_, act)| (if act.out { "STOP" } else { "START" }, act.at_ms))), Some(*person));
        }
        world.tell("person", format!("writes at {partition}@{offset}: {}", told.0), told.1);
        world.append(INBOUND, partition, None, Some(value), note);
        world.count("messages");
    }

    /// Somebody else writes opt-outs: alone, or in a transaction that may stay open, be aborted or time out.
    fn third_party(&mut self, world: &mut World) {
        if !world.strikes(Fault::ThirdParties, 1) {
            return;
        }
        let transaction = if world.strikes(Fault::HangingTransactions, 2) {
            self.transactions += 1;
            let id = format!("third-party-{}", self.transactions);
            let transaction = world.begin(&id);
            self.open.push((transaction, world.step));
            Some(transaction)
        } else {
            None
        };
        for _ in 0..1 + world.random.below(2) {
            let person = OWN + world.random.below((PERSONS - OWN) as u64) as usize;
            let known = identities(person);
            let identity = &known[world.random.below(known.len() as u64) as usize];
            let subject = world.random.pick(&["marketing", "all", "review", "program:news"]);
            let channel = world.random.pick(&["whatsapp", "whatsapp", "*"]);
            let out = !world.random.one_in(3);
            let late = if world.strikes(Fault::OutOfOrder, 2) { world.random.below(400_000) as i64 } else { 0 };
            // A third party's clock may run ahead, or there is none.
            let at = match world.random.below(8) {
                0 => 0,
                1 => world.now_ms() + late,
                _ => world.now_ms() - late,
            };
            let state = if out { proto::ConsentState::OptedOut } else { proto::ConsentState::OptedIn };
            let record =
                proto::ConsentRecord { state: state.into(), occurred_at_ms: at, cause: proto::ConsentCause::Admin.into(), ..Default::default() };
            let value = if world.strikes(Fault::Poison, 12) { b"\xff\xff\xff".to_vec() } else { record.encode_to_vec() };
            let key = encode_key(&ConsentKey {
                business: "acme".into(),
                channel: Channel::parse(channel).expect("a channel"),
                identity: Identity::parse(identity).expect("an identity"),
                subject: Subject::parse(subject).expect("a subject"),
            });
            let partition = key.partition(world.log.partitions(OPT_OUTS));
            let offset = world.append_in(OPT_OUTS, partition, Some(key.as_bytes().to_vec()), Some(value), Note::Nothing, transaction);
            if let Some(transaction) = transaction {
                world.wrote(transaction, OPT_OUTS, partition);
            }
            let what = format!("writes opt-outs {partition}@{offset}: {state:?} of {subject} on {channel} at {at} in {transaction:?}");
            world.tell("third party", what, Some(person));
        }
    }

    fn end_some(&mut self, world: &mut World) {
        if let Some((transaction, _)) = self.open.pop_if(|_| true) {
            let ending = if world.random.one_in(3) { Ending::Aborted } else { Ending::Committed };
            world.end(transaction, ending);
            world.tell("third party", format!("ends transaction {transaction}: {ending:?}"), None);
        }
    }

    /// Everything that third parties have open ends.
    pub fn end_all(&mut self, world: &mut World) {
        while !self.open.is_empty() {
            self.end_some(world);
        }
    }

    /// The operator heals: rarely enough that compaction has not come there yet, often enough that it never does before.
    /// (With the mutation that skips it, the time of healing comes and nothing is done.)
    pub fn heal(&mut self, world: &mut World) {
        if !is_settled(world) {
            return;
        }
        let tick = world.tick();
        self.heals.push((world.step, tick));
        if !world.is(Mutation::HealSkipped) {
            heal(world);
        }
    }

    /// The broker compacts what is old enough, and was healed at least as long ago.
    pub fn compact(&self, world: &mut World) {
        let old_enough = self.heals.iter().rev().find(|(step, _)| step + COMPACTION_LAG <= world.step);
        let Some((_, before)) = old_enough else { return };
        world.log.compact(OPT_OUTS, *before);
        world.count("compactions");
        world.tell("broker", "compacts opt-outs".to_owned(), None);
    }
}

/// Something on opt-outs after which nobody may be allowed anything any more.
pub fn spoil(world: &mut World) {
    if world.random.one_in(2) {
        world.log.add_partition(OPT_OUTS);
        world.tell("operator", "adds a partition to opt-outs".to_owned(), None);
    } else {
        let partition = world.random.below(u64::from(world.log.partitions(OPT_OUTS))) as u32;
        world.append(OPT_OUTS, partition, Some(b"nobody's key".to_vec()), Some(b"\xff".to_vec()), Note::Nothing);
        world.tell("third party", "writes a key to opt-outs that nobody can read".to_owned(), None);
    }
}

pub fn send(world: &mut World) {
    let person = world.random.below(PERSONS as u64) as usize;
    let partition = world.random.below(2) as u32;
    let known = identities(person);
    let to = &known[world.random.below(known.len() as u64) as usize];
    let exempt = world.random.one_in(8);
    let expires_at_ms = world.random.one_in(6).then(|| world.now_ms() + 20_000 + world.random.below(100_000) as i64);
    let mut body = serde_json::json!({"id": world.random.bits().to_string(), "business": "acme", "channel": "whatsapp", "to": to});
    if known.len() > 1 {
        body["to"] = serde_json::json!(known);
    }
    if exempt {
        body["category"] = "utility".into();
    }
    if let Some(at) = expires_at_ms {
        body["expires_at"] = at.into();
    }
    let (value, note) = match world.random.one_in(20) {
        true => (b"no send at all".to_vec(), Note::Nothing),
        false => (body.to_string().into_bytes(), Note::Send { person, exempt, expires_at_ms }),
    };
    let offset = world.append(SENDS, partition, Some(to.clone().into_bytes()), Some(value), note);
    world.tell("campaign", format!("sends at {partition}@{offset}"), Some(person));
    world.count("sends");
}

/// Key and value of a record.
type KeyValue = (Vec<u8>, Vec<u8>);

/// Reads all of the opt-outs topic. What must be healed, and every record with the value under which it counts again.
fn read_all(world: &World) -> (Healing, BTreeMap<Position, KeyValue>) {
    let mut healing = Healing::new(PrintKey::new(1, 2), world.log.partitions(OPT_OUTS));
    let mut all = BTreeMap::new();
    for partition in 0..world.log.partitions(OPT_OUTS) {
        for (offset, record) in world.log.read(OPT_OUTS, partition, 0, usize::MAX).0 {
            let at = Position { partition, offset };
            let written = Written { at, timestamp_ms: Some(record.timestamp_ms), key: record.key.as_deref(), value: record.value.as_deref() };
            healing.read(&written, &Businesses::default());
            all.insert(at, (record.key.clone().unwrap_or_default(), again(&written).unwrap_or_default()));
        }
    }
    (healing, all)
}

fn is_settled(world: &World) -> bool {
    (0..world.log.partitions(OPT_OUTS))
        .all(|partition| world.log.stable_end(OPT_OUTS, partition) == world.log.topic(OPT_OUTS).partitions[partition as usize].end)
}

fn heal(world: &mut World) {
    let (healing, mut all) = read_all(world);
    for at in healing.due() {
        let Some((key, value)) = all.remove(&at) else { continue };
        let offset = world.append(OPT_OUTS, at.partition, Some(key), Some(value), Note::Nothing);
        world.count("healed");
        world.tell("operator", format!("heals {at}: again at {offset}"), None);
    }
}

/// The topic is deleted, created again, and what stands in it is imported again: it ends below where it ended.
pub fn recreate(world: &mut World) {
    if !is_settled(world) {
        return;
    }
    let old: Vec<u64> = world.log.topic(OPT_OUTS).partitions.iter().map(|partition| partition.end).collect();
    let (healing, all) = read_all(world);
    // The last record of each key, and where that is not the one that stands, the one that does.
    let due = healing.due();
    let mut kept: BTreeMap<(u32, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for (at, (key, value)) in all.iter().chain(due.iter().filter_map(|at| all.get_key_value(at))) {
        kept.insert((at.partition, key.clone()), value.clone());
    }
    let count = |partition: u32| kept.keys().filter(|(at, _)| *at == partition).count() as u64;
    if (0..).zip(&old).any(|(partition, end)| count(partition) >= *end) {
        return;
    }
    world.log.create(OPT_OUTS, old.len());
    for ((partition, key), value) in kept {
        world.append(OPT_OUTS, partition, Some(key), Some(value), Note::Nothing);
    }
    let (id, tick) = (world.log.topic(OPT_OUTS).id, world.tick());
    world.judge.made_at.insert(id, tick);
    world.count("topics made anew");
    world.tell("operator", "deletes opt-outs and creates it again".to_owned(), None);
}
