//! The unsubscribe list: entries stand behind the fence, lists go in and come out, nothing is weakened on a say-so.

use std::fs;

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::kafka::{CLEANED_AT_ONCE, Record};
use crate::support::records::{OPTED_IN, OPTED_OUT};
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{Layout, World, now_ms, phone};

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn what_is_entered_counts_from_the_moment_the_verb_returns() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "enter");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let ada = phone(1);
    let verb = |verb: &str| world.verb(verb).arg("--business", "acme").arg("--to", &ada);
    verb("opt-out show").finish().expect_code(1);

    let told = verb("opt-out add").arg("--reason", "rang us").arg("--actor", "grace").word("--json").finish().expect_code(0);
    let told = json(&told.stdout);
    assert_eq!((&told["written"], &told["changed"], &told["marketing"]), (&Value::Bool(true), &Value::Bool(true), &"suppressed".into()));
    world.asks("after", &ada);
    let suppressed = outcomes.await_suppressed("after");
    assert_eq!(suppressed.header("stopgate-cause").as_deref(), told["position"].as_str());

    let shown = verb("opt-out show").finish().expect_code(0).stdout;
    assert!(shown.contains("opted-out") && shown.contains("rang us") && shown.contains("grace"), "{shown}");

    let refused = verb("opt-out remove").finish().expect_code(2);
    assert!(refused.stderr.contains("--proof"), "{}", refused.stderr);
    let early = verb("opt-out remove").arg("--proof", "letter").arg("--at", "2020-01-01T00:00:00Z").finish().expect_code(1);
    assert!(early.stderr.contains("a later act stands") && !early.stderr.contains(&ada), "{}", early.text());
    let back = verb("opt-out remove").arg("--proof", "letter of 3 May").word("--json").finish().expect_code(0);
    assert_eq!(json(&back.stdout)["marketing"], "allowed");
    world.asks("back", &ada);
    outcomes.await_allowed("back");

    let late = verb("opt-out add").arg("--at", "2020-01-01T00:00:00Z").finish().expect_code(1);
    assert!(late.stderr.contains("opted-in"), "{}", late.text());
    for (name, value, says) in [
        ("--at", "2999-01-01T00:00:00Z", "future"),
        ("--at", "soon", "no time"),
        ("--to", "12ab", "no identity"),
        ("--subject", "x", "program:ID"),
    ] {
        let refused = verb("opt-out add").arg(name, value).finish().expect_code(2);
        assert!(refused.stderr.contains(says) && !refused.stderr.contains("12ab"), "{}", refused.stderr);
    }
    let story = world.verb("explain").arg("--recipient", &ada).finish().expect_code(0).stdout;
    assert!(story.contains("letter of 3 May") && story.contains("grace"), "{story}");
}

#[test]
fn a_list_goes_in_row_by_row_and_its_own_export_changes_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "import");
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    // Somebody who came back after the list was made.
    world.consent(&format!("phone:{}", phone(4)), "marketing", OPTED_IN, now_ms());
    let list = format!(
        "phone,subject,occurred_at,state,reason\n{},,2024-05-01T10:00:00Z,,old list\n{},program:news,,,\n\"{},,,,\n{},,yesterday,,\n{},,2024-05-01T10:00:00Z,,\n{},,,opted-in,\n{},all,1793527200,,\n",
        phone(1),
        phone(2),
        phone(3),
        phone(3),
        phone(4),
        phone(5),
        phone(6)
    );
    let list = file("list.csv", &list);
    let import = |file: &str| world.verb("opt-out import").word(file).arg("--business", "acme").arg("--channel", "whatsapp").word("--json");
    let before = world.kafka.ends(&world.names.opt_outs);
    let tried = import(&list).word("--dry-run").finish().expect_code(1);
    assert!(tried.stdout.contains(r#""written":3"#), "{}", tried.stdout);
    assert_eq!(world.kafka.ends(&world.names.opt_outs), before, "a dry run writes nothing");
    let imported = import(&list).finish().expect_code(1).stdout;
    let lines: Vec<Value> = imported.lines().map(json).collect();
    let told: Vec<(u64, &str)> = lines.iter().filter_map(|line| Some((line["line"].as_u64()?, line["error"].as_str()?))).collect();
    let expected = [(4, "quote"), (5, "no time"), (7, "--proof")];
    assert_eq!(told.len(), expected.len(), "{imported}");
    assert!(told.iter().zip(expected).all(|(told, expected)| told.0 == expected.0 && told.1.contains(expected.1)), "{told:?}");
    assert!(!imported.contains("555"), "no number is told: {imported}");
    let summary = &lines.last().expect("a summary")["summary"];
    assert_eq!((&summary["rows"], &summary["written"], &summary["stood"], &summary["refused"]), (&7.into(), &3.into(), &1.into(), &3.into()));
    let again = import(&list).finish().expect_code(1).stdout;
    assert!(again.contains(r#""written":0"#) && again.contains(r#""stood":4"#), "{again}");

    for format in ["csv", "jsonl"] {
        let exported = world.verb("opt-out export").arg("--format", format).finish().expect_code(0);
        assert!(exported.stderr.contains("4 rows as of 0@"), "{}", exported.stderr);
        let own = file("own", &exported.stdout);
        let again = import(&own).finish().expect_code(0).stdout;
        assert!(again.contains(r#""rows":4,"stood":4,"written":0"#), "{again}");
    }
    let exported = world.verb("opt-out export").arg("--state", "opted-out").finish().expect_code(0).stdout;
    let mut rows: Vec<&str> = exported.lines().collect();
    assert_eq!(rows.remove(0), "business,channel,identity,subject,state,occurred_at,reason,source");
    rows.sort_unstable();
    let mut first = csv_cells(rows[0]);
    assert!(first.pop().is_some_and(|source| source.starts_with("list ") && source.ends_with(" line 2")), "{exported}");
    assert_eq!(first, ["acme", "whatsapp", &format!("phone:{}", phone(1)), "marketing", "opted-out", "2024-05-01T10:00:00Z", "old list"]);

    for (text, says) in
        [("name,surname\n1,2\n", "must name the columns"), ("\u{0}\u{1}", "must name the columns"), ("", "must name the columns")]
    {
        let refused = import(&file("bad", text)).finish().expect_code(2);
        assert!(refused.stderr.contains(says), "{}", refused.text());
    }
    import("/nonexistent").finish().expect_code(2);
}

fn csv_cells(line: &str) -> Vec<String> {
    line.split(',').map(str::to_owned).collect()
}

#[test]
fn a_list_is_told_as_it_was_at_positions_and_at_times() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { opt_outs: 2, ..Layout::default() };
    let world = World::with(broker, "as-of", layout);
    let ada = format!("phone:{}", phone(1));
    world.consent(&ada, "marketing", OPTED_OUT, now_ms() - 5000);
    let then = world.kafka.ends(&world.names.opt_outs);
    let time = now_ms();
    wait_for("a later millisecond", DEADLINE, || if now_ms() > time + 1 { Ok(()) } else { Err(time) });
    world.consent(&ada, "marketing", OPTED_IN, now_ms());
    let listed = |as_of: &str| world.verb("opt-out list").arg("--as-of", as_of).finish();
    let positions = format!("0@{},1@{}", then[0], then[1]);
    for as_of in [positions.as_str(), &time.to_string()] {
        let told = listed(as_of).expect_code(0).stdout;
        assert!(told.contains("opted-out") && !told.contains("opted-in") && told.lines().count() == 1, "{as_of}: {told}");
    }
    assert!(world.verb("opt-out list").finish().expect_code(0).stdout.contains("opted-in"));
    for (as_of, says) in [("0@0", "no position of partition 1"), ("0@99,1@99", "created again"), ("0@0,0@0,1@0", "twice"), ("x", "neither")] {
        let refused = listed(as_of).expect_code(2);
        assert!(refused.stderr.contains(says), "{as_of}: {}", refused.stderr);
    }
}

#[test]
fn two_writers_at_once_leave_one_state_and_every_record() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "writers");
    let verb = |verb: &str| world.verb(verb).arg("--business", "acme").arg("--to", &phone(1)).word("--json");
    let (out, back) = std::thread::scope(|scope| {
        let out = scope.spawn(|| verb("opt-out add").finish());
        let back = scope.spawn(|| verb("opt-out remove").arg("--proof", "letter").finish());
        (out.join().expect("ended"), back.join().expect("ended"))
    });
    let times = [&out, &back].map(|finished| json(&finished.stdout)["occurred_at"].as_str().expect("a time").to_owned());
    assert!(out.code == 0 || back.code == 0, "{} {}", out.text(), back.text());
    let shown = json(&verb("opt-out show").finish().expect_code(0).stdout);
    // A second's fraction has no zeros at its end: with the Z, 59.08Z would stand behind 59.083Z.
    let last = times.iter().max_by_key(|time| time.trim_end_matches('Z')).expect("two");
    assert_eq!(shown["occurred_at"].as_str(), Some(last.as_str()), "the later act stands: {shown}");
}

#[test]
fn healing_appends_what_compaction_would_take_away() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { opt_outs_settings: CLEANED_AT_ONCE.to_vec(), opt_outs: 1, ..Layout::default() };
    let world = World::with(broker, "heal", layout);
    let ada = format!("phone:{}", phone(1));
    let now = now_ms();
    world.consent(&ada, "marketing", OPTED_OUT, now - 1000);
    world.consent(&ada, "marketing", OPTED_IN, now - 2000);
    let due = world.verb("opt-out heal").word("--dry-run").finish().expect_code(1);
    assert!(due.stdout.contains("1 to be appended again: 0@0"), "{}", due.text());
    let healed = world.verb("opt-out heal").word("--json").finish().expect_code(0);
    assert_eq!(json(&healed.stdout)["due"][0], "0@0");
    world.verb("opt-out heal").word("--dry-run").finish().expect_code(0);
    // Other keys close the segment, and the cleaner keeps the last record of the key.
    wait_for("compaction", DEADLINE, || {
        world.kafka.produce(&world.names.opt_outs, Record::new("acme|whatsapp|ext:filler|marketing", [8, 1]).to(0));
        let records = world.kafka.read_committed(&world.names.opt_outs);
        let left = records.iter().filter(|record| record.key_text().contains(&ada)).count();
        if left == 1 { Ok(()) } else { Err(left) }
    });
    let shown = world.verb("opt-out show").arg("--business", "acme").arg("--to", &phone(1)).finish().expect_code(0).stdout;
    assert!(shown.contains("opted-out"), "{shown}");
}

const SECRET: &str = "identity_hash_key = \"a secret of the operator\"";

#[test]
fn who_is_erased_stays_protected_until_they_come_back_themselves() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "erase").setting(SECRET);
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let (ada, bob) = (phone(1), phone(2));
    let verb = |verb: &str, to: &str| world.verb(verb).arg("--business", "acme").arg("--to", to);
    world.says(&ada, "please STOP");
    let opt_outs = world.kafka.reader(&world.names.opt_outs, crate::support::kafka::Isolation::Committed);
    opt_outs.find("the opt-out", |record| record.key_text().contains(&ada));

    let tried = verb("opt-out erase", &ada).word("--dry-run").finish().expect_code(0).stdout;
    assert!(tried.contains("1 keys to be erased") && tried.contains("1 acts go on standing under hash:"), "{tried}");
    let erased = verb("opt-out erase", &ada).word("--json").finish().expect_code(0).stdout;
    let hash = json(&erased)["hash"].as_str().expect("a hash").to_owned();
    let tombstone = opt_outs.find("the tombstone", |record| record.key_text().contains(&ada) && record.value.is_none());
    let protecting = opt_outs.find("the protecting record", |record| record.key_text().contains(&hash));
    assert!(!protecting.value_text().contains("STOP") && tombstone.value.is_none());
    world.asks("after", &ada);
    let suppressed = outcomes.await_suppressed("after");
    assert_eq!(suppressed.header("stopgate-cause"), Some(protecting.position()), "the hash stands in for the person");
    let shown = verb("opt-out show", &ada).finish().expect_code(0).stdout;
    assert!(shown.contains(&hash) && !shown.contains(&ada), "{shown}");
    verb("opt-out erase", &ada).finish().expect_code(1);

    // A view that is restored holds the same.
    service.terminate();
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    world.asks("restored", &ada);
    outcomes.await_suppressed("restored");
    world.says(&ada, "START");
    opt_outs.find("the opt-in", |record| record.key_text().contains(&ada) && record.value.is_some() && record.offset > tombstone.offset);
    world.asks("back", &ada);
    outcomes.await_allowed("back");
    let replayed = world.verb("replay").finish();
    assert_eq!(replayed.code, 0, "{}", replayed.text());

    // Who is opted out of nothing leaves nothing behind; who is cannot be erased without a key.
    let gone = verb("opt-out erase", &ada).finish().expect_code(0).stdout;
    assert!(gone.contains("opted out of nothing"), "{gone}");
    let plain = World::new(broker, "erase-plain");
    plain.opts_out(&bob);
    let refused = plain.verb("opt-out erase").arg("--business", "acme").arg("--to", &bob).finish().expect_code(2);
    assert!(refused.stderr.contains("identity_hash_key") && !refused.stderr.contains(&bob), "{}", refused.stderr);
}

#[test]
fn hashed_identities_leave_no_address_and_no_text_on_opt_outs() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "hashed").setting(SECRET).setting("identities = \"hashed\"");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let (ada, bob) = (phone(1), phone(2));
    world.says(&ada, "please STOP, said Ada");
    world.verb("opt-out add").arg("--business", "acme").arg("--to", &bob).finish().expect_code(0);
    let records = world.kafka.reader(&world.names.opt_outs, crate::support::kafka::Isolation::Committed).at_least(2);
    for record in &records {
        let all = record.key_text() + &record.value_text();
        let tells = [ada.trim_start_matches('+'), bob.trim_start_matches('+'), "Ada"].iter().any(|private| all.contains(*private));
        assert!(record.key_text().contains("|hash:") && !tells, "{all}");
    }
    // An opt-out from before, in plain, goes on counting.
    let eve = phone(3);
    world.opts_out(&eve);
    for (id, to) in [("ada", &ada), ("bob", &bob), ("eve", &eve)] {
        world.asks(id, to);
        outcomes.await_suppressed(id);
    }
    let shown = world.verb("opt-out show").arg("--business", "acme").arg("--to", &ada).finish().expect_code(0).stdout;
    assert!(shown.contains("opted-out") && !shown.contains(&ada), "{shown}");
    world.says(&ada, "START");
    world.kafka.reader(&world.names.replies, crate::support::kafka::Isolation::Committed).at_least(2);
    world.asks("back", &ada);
    outcomes.await_allowed("back");
    let refused = World::new(broker, "hashed-keyless").setting("identities = \"hashed\"").verb("check").finish().expect_code(2);
    assert!(refused.stderr.contains("needs identity_hash_key"), "{}", refused.stderr);
}
