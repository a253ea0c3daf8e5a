use super::*;
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, Subject};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

fn key(person: u32) -> ConsentKey {
    ConsentKey {
        business: "acme".into(),
        channel: Channel::Whatsapp,
        identity: Identity::parse(&format!("ext:{person}")).expect("an identity"),
        subject: Subject::Marketing,
    }
}

fn act(out: bool, at: i64, offset: u64) -> Act {
    Act {
        state: if out { ConsentState::OptedOut } else { ConsentState::OptedIn },
        occurred_at: Timestamp::from_millis(at).expect("in range"),
        source: Source { topic: 0, partition: 0, offset, index: 0 },
        cause: Position { partition: 0, offset },
        changed_state: true,
    }
}

fn standing(set: &SuppressionSet, key: &ConsentKey) -> Option<Act> {
    let (person, slot) = set.prints(key);
    set.standing(person, slot)
}

#[test]
fn an_older_act_behind_a_newer_one_changes_nothing_and_is_told() {
    let mut set = SuppressionSet::new(PrintKey::new(1, 2));
    let (first, second) = (act(true, 10, 0), act(false, 20, 1));
    assert_eq!(set.apply(&key(1), second), Applied::First);
    assert_eq!(set.apply(&key(1), first), Applied::Older);
    assert_eq!(set.apply(&key(1), second), Applied::Repeat);
    assert_eq!(standing(&set, &key(1)), Some(second));
    let third = act(true, 30, 2);
    assert_eq!(set.apply(&key(1), third), Applied::Superseded(second));
}

#[test]
fn an_erased_key_is_forgotten_and_its_neighbours_are_not() {
    let mut set = SuppressionSet::new(PrintKey::new(1, 2));
    set.apply(&key(1), act(true, 10, 0));
    set.apply(&key(2), act(true, 10, 1));
    set.erase(&key(1));
    assert_eq!(standing(&set, &key(1)), None);
    assert!(standing(&set, &key(2)).is_some());
    assert_eq!(set.len(), 1);
}

#[test]
fn an_act_that_meets_one_of_another_partition_is_counted() {
    let mut set = SuppressionSet::new(PrintKey::new(1, 2));
    set.apply(&key(1), act(true, 10, 0));
    set.apply(&key(1), act(true, 11, 1));
    assert_eq!(set.strange_partitions(), 0);
    set.apply(&key(1), Act { cause: Position { partition: 3, offset: 0 }, ..act(true, 12, 2) });
    assert_eq!(set.strange_partitions(), 1);
}

/// Opt-outs as detection writes them, of four partitions. Few as they are, rows keep a byte that many more would not need.
#[test]
fn an_entry_costs_less_than_twenty_bytes_all_told() {
    let mut set = SuppressionSet::new(PrintKey::new(1, 2));
    let empty = set.allocated_bytes();
    let slot = SlotPrint(9);
    let entries = 600_000_u64;
    for number in 0..entries {
        let offset = number / 4;
        let act = Act {
            occurred_at: Timestamp::from_millis(1_793_500_000_000 + (number * 977) as i64).expect("in range"),
            source: Source { topic: 7, partition: number as u32 % 6, offset: number * 100, index: 0 },
            cause: Position { partition: number as u32 % 4, offset },
            ..act(true, 0, 0)
        };
        set.apply_to(scattered(number), slot, act);
    }
    assert_eq!(set.len() as u64, entries);
    tighten(&mut set, 0..SHARDS);
    let tight = set.allocated_bytes() - empty;
    assert!(tight < entries as usize * 20, "{tight}");
}

fn tighten(set: &mut SuppressionSet, shards: Range<usize>) {
    let mut tight = set.tightened(shards);
    set.relieve(&mut tight);
}

/// A fingerprint that looks like one: every bit depends on the number.
fn scattered(number: u64) -> PersonPrint {
    let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    PersonPrint(bits ^ (bits >> 31))
}

/// One of many persons of the first shard, so that it grows again and again.
fn of_first_shard(number: u64) -> PersonPrint {
    PersonPrint(scattered(number).0 & ((1 << PRINT_BITS) - 1))
}

/// Changes whenever the first shard moves its rows.
fn layout(set: &SuppressionSet) -> (usize, [(i64, u8); image::CELLS]) {
    let image = set.shards[0].image();
    (image.tags.len(), image.columns)
}

#[test]
fn a_set_that_knows_how_many_acts_follow_moves_its_rows_seldom() {
    let moves = |expected: Option<usize>| {
        let mut set = SuppressionSet::new(PrintKey::new(1, 2));
        set.expect_many(expected);
        let mut moves = 0;
        for number in 0..2000 {
            let before = layout(&set);
            // Offsets grow from act to act, and with them their columns.
            set.apply_to(of_first_shard(number), SlotPrint(9), act(true, 1_793_500_000_000, number * 900));
            moves += usize::from(set.len() > 100 && layout(&set) != before);
        }
        moves
    };
    assert!(moves(Some(2000 * SHARDS)) <= 2, "{}", moves(Some(2000 * SHARDS)));
    assert!(moves(None) > 20, "{}", moves(None));
}

#[test]
fn a_set_that_is_relieved_before_its_acts_does_not_grow_among_them() {
    let mut set = SuppressionSet::new(PrintKey::new(1, 2));
    let (mut grown_among, mut relieved) = (0, 0);
    for slice in (0..40_000).step_by(20) {
        let mut relief = set.relief((slice..slice + 20).map(of_first_shard));
        relieved += relief.0.len();
        set.relieve(&mut relief);
        let before = layout(&set);
        for number in slice..slice + 20 {
            set.apply_to(of_first_shard(number), SlotPrint(9), act(true, 1_793_500_000_000 + number as i64, number));
        }
        grown_among += usize::from(set.len() > 1000 && layout(&set) != before);
    }
    assert!(relieved > 50, "{relieved}");
    assert_eq!(grown_among, 0);
}

/// What a test does to the set and to the ordered map beside it.
#[derive(Clone, Debug)]
enum Step {
    Apply(PersonPrint, SlotPrint, Act),
    Erase(PersonPrint, SlotPrint),
    Note(PersonPrint, SlotPrint, u64),
    Relieve(Vec<PersonPrint>),
    Tighten(usize),
    Slide,
    Bulk(Option<usize>),
}

/// Few shards and crowded buckets: prints that differ in their lowest bits, or lie next to one another.
fn any_person() -> impl Strategy<Value = PersonPrint> {
    prop_oneof![
        (0..2_u64, 0..150_u64).prop_map(|(shard, near)| PersonPrint((shard << PRINT_BITS) | (near << 8))),
        (0..3000_u64).prop_map(|number| PersonPrint(scattered(number).0 & ((1 << (PRINT_BITS + 1)) - 1))),
        prop_oneof![Just(PersonPrint(0)), Just(PersonPrint(u64::MAX))],
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    let number = || prop_oneof![8 => 0..40_000_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let time = prop_oneof![8 => 1_793_500_000_000..1_793_500_000_900_i64, 1 => any::<i64>(), 1 => -9..9_i64];
    let small = || prop_oneof![9 => 0..3_u32, 1 => any::<u32>()];
    (any::<bool>(), any::<bool>(), time, number(), small(), number(), small(), small(), small()).prop_map(
        |(out, changed_state, at, offset, partition, source_offset, topic, source_partition, index)| Act {
            state: if out { ConsentState::OptedOut } else { ConsentState::OptedIn },
            occurred_at: Timestamp::EPOCH.plus_millis(at),
            source: Source { topic, partition: source_partition, offset: source_offset, index },
            cause: Position { partition, offset },
            changed_state,
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let slot = || (0..4_u64).prop_map(SlotPrint);
    prop_oneof![
        30 => (any_person(), slot(), any_act()).prop_map(|(person, slot, act)| Step::Apply(person, slot, act)),
        6 => (any_person(), slot()).prop_map(|(person, slot)| Step::Erase(person, slot)),
        2 => (any_person(), slot(), any::<u64>()).prop_map(|(person, slot, note)| Step::Note(person, slot, note)),
        2 => prop::collection::vec(any_person(), 0..40).prop_map(Step::Relieve),
        1 => (0..2_usize).prop_map(Step::Tighten),
        1 => Just(Step::Slide),
        1 => prop::option::of(prop_oneof![Just(0), 0..2_000_000_usize]).prop_map(Step::Bulk),
    ]
}

#[derive(Default)]
struct Model {
    acts: BTreeMap<(u64, u64), Act>,
    notes: BTreeMap<(u64, u64), u64>,
}

impl Model {
    fn apply(&mut self, person: PersonPrint, slot: SlotPrint, act: Act) -> Applied {
        match self.acts.get_mut(&(person.0, slot.0)) {
            None => {
                self.acts.insert((person.0, slot.0), act);
                Applied::First
            }
            Some(standing) if act.supersedes(standing) => Applied::Superseded(std::mem::replace(standing, act)),
            Some(standing) if act.rank() == standing.rank() => Applied::Repeat,
            Some(_) => Applied::Older,
        }
    }
}

proptest! {
    #[test]
    fn the_set_agrees_with_an_ordered_map(steps in prop::collection::vec(any_step(), 0..2500)) {
        let mut set = SuppressionSet::new(PrintKey::new(3, 4));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Apply(person, slot, act) => prop_assert_eq!(set.apply_to(person, slot, act), model.apply(person, slot, act)),
                Step::Erase(person, slot) => {
                    set.erase_from(person, slot);
                    model.acts.remove(&(person.0, slot.0));
                    model.notes.remove(&(person.0, slot.0));
                }
                Step::Note(person, slot, note) => {
                    set.note_opt_in(person, slot, note);
                    model.notes.insert((person.0, slot.0), note);
                }
                Step::Relieve(persons) => {
                    let mut relief = set.relief(persons.into_iter());
                    set.relieve(&mut relief);
                }
                Step::Tighten(shard) => tighten(&mut set, shard..shard + 1),
                Step::Slide => set.tables().into_iter().for_each(|table| set.slide(table)),
                Step::Bulk(many) => set.expect_many(many),
            }
        }
        prop_assert_eq!(set.len(), model.acts.len());
        for ((person, slot), act) in &model.acts {
            prop_assert!(set.knows(PersonPrint(*person)));
            prop_assert_eq!(set.standing(PersonPrint(*person), SlotPrint(*slot)), Some(*act));
        }
        for number in 0..3000 {
            let person = PersonPrint(scattered(number).0 & ((1 << (PRINT_BITS + 1)) - 1));
            let known = model.acts.range((person.0, 0)..=(person.0, u64::MAX)).next().is_some();
            prop_assert_eq!(set.knows(person), known);
            for slot in 0..4 {
                let (standing, note) = (model.acts.get(&(person.0, slot)), model.notes.get(&(person.0, slot)));
                prop_assert_eq!(set.standing(person, SlotPrint(slot)), standing.copied());
                prop_assert_eq!(set.opt_in_note(person, SlotPrint(slot)), note.copied());
            }
        }
    }
}
