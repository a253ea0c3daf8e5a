//! TLS, both kinds of SASL, and the least rights with which each verb works, by the broker's own authorizer.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::broker::{Broker, Options};
use crate::support::service::Start;
use crate::support::world::{World, phone};

const SECRET: &str = "correct-horse";

/// A certificate of one's own for `localhost`, and with its key as brokers want it.
fn certificate(directory: &Path) -> Option<(String, String)> {
    let (key, cert, both) = (directory.join("key.pem"), directory.join("cert.pem"), directory.join("both.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("skipped the security suite: no openssl");
        return None;
    }
    let read = |path: &Path| std::fs::read_to_string(path).expect("written");
    std::fs::write(&both, read(&key) + &read(&cert)).expect("written");
    Some((cert.display().to_string(), both.display().to_string()))
}

struct Secured {
    broker: Broker,
    certificate: String,
    _directory: tempfile::TempDir,
}

impl Secured {
    fn start() -> Option<Secured> {
        let directory = tempfile::tempdir().expect("a directory");
        let (certificate, keystore) = certificate(directory.path())?;
        let users = ["detect", "filter", "desk", "auditor"];
        let plain: String = users.iter().map(|user| format!(" user_{user}=\"{SECRET}\"")).collect();
        let modules = "org.apache.kafka.common.security";
        let properties = [
            ("listeners", "PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{second},CONTROLLER://127.0.0.1:{controller}".to_owned()),
            ("advertised.listeners", "PLAINTEXT://127.0.0.1:{port},SECURE://localhost:{second}".into()),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL".into()),
            ("inter.broker.listener.name", "PLAINTEXT".into()),
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-512".into()),
            ("listener.name.secure.plain.sasl.jaas.config", format!("{modules}.plain.PlainLoginModule required{plain};")),
            ("listener.name.secure.scram-sha-512.sasl.jaas.config", format!("{modules}.scram.ScramLoginModule required;")),
            ("ssl.keystore.type", "PEM".into()),
            ("ssl.keystore.location", keystore),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".into()),
            ("super.users", "User:ANONYMOUS".into()),
        ];
        let properties = properties.map(|(name, value)| (name.to_owned(), value)).into();
        let scram = |user: &&str| ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={user},password={SECRET}]")];
        let broker = Broker::start(&Options { heap: "512m", properties, format: users.iter().flat_map(scram).collect(), ..Options::default() })?;
        Some(Secured { broker, certificate, _directory: directory })
    }

    /// Lets a user do this to topics, groups or transactional ids, and nothing else.
    fn allow(&self, user: &str, operations: &[&str], resources: &[&str]) {
        let principal = format!("User:{user}");
        let mut arguments = vec!["--bootstrap-server", self.broker.bootstrap(), "--add", "--allow-principal", &principal];
        operations.iter().for_each(|operation| arguments.extend(["--operation", operation]));
        arguments.extend(resources);
        self.broker.tool("org.apache.kafka.tools.AclCommand", &arguments);
    }

    /// A verb as this user.
    fn as_user(&self, start: Start, world: &World, user: &str, mechanism: &str, password: &str, certificate: &str) -> Start {
        let security = format!(
            "[kafka]\n\"security.protocol\" = \"sasl_ssl\"\n\"ssl.ca.location\" = \"{certificate}\"\n\"sasl.mechanism\" = \"{mechanism}\"\n\
             \"sasl.username\" = \"{user}\"\n"
        );
        start
            .config(&format!("{}\n{security}", world.config()))
            .variable("STOPGATE_KAFKA_SASL_PASSWORD", password)
            .arg("--bootstrap", &format!("localhost:{}", self.broker.second_port()))
    }
}

/// `--topic A --topic B`.
fn topics<'t>(names: &[&'t str]) -> Vec<&'t str> {
    names.iter().flat_map(|name| ["--topic", name]).collect()
}

#[test]
fn each_verb_works_over_tls_with_the_rights_that_are_written_down_and_not_without_them() {
    let Some(secured) = Secured::start() else { return };
    let world = World::new(&secured.broker, "secured");
    let names = world.names.clone();
    let verb = |verb: &str, user: &str| secured.as_user(Start::verb(verb), &world, user, "SCRAM-SHA-512", SECRET, &secured.certificate);
    let ada = phone(1);
    let add = |user: &str| verb("opt-out add", user).arg("--business", "acme").arg("--to", &ada);

    // Nothing is allowed yet.
    let refused = add("desk").finish();
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.to_lowercase().contains("authoriz") || refused.stderr.contains("no broker answers"), "{}", refused.text());

    let all = [
        &names.inbound, &names.opt_outs, &names.replies, &names.reviews, &names.sends, &names.allowed, &names.suppressed, &names.decisions,
        &names.dead_letters,
    ];
    let all: Vec<&str> = all.iter().map(|name| name.as_str()).collect();
    let describe = ["Describe", "DescribeConfigs"];
    secured.allow("detect", &["Read"], &[topics(&[&names.inbound, &names.opt_outs]), vec!["--group", &names.detect_group]].concat());
    let written = topics(&[&names.opt_outs, &names.replies, &names.reviews, &names.dead_letters]);
    secured.allow("detect", &["Write"], &written);
    secured.allow("detect", &describe, &topics(&[&names.inbound, &names.opt_outs, &names.replies, &names.reviews, &names.dead_letters]));
    secured.allow("filter", &["Read"], &[topics(&[&names.sends, &names.opt_outs]), vec!["--group", &names.filter_group]].concat());
    secured.allow("filter", &["Write"], &topics(&[&names.allowed, &names.suppressed, &names.decisions, &names.dead_letters]));
    let filtered = [&names.sends, &names.opt_outs, &names.allowed, &names.suppressed, &names.decisions, &names.dead_letters];
    secured.allow("filter", &describe, &topics(&filtered.map(String::as_str)));
    for (user, group) in [("detect", &names.detect_group), ("filter", &names.filter_group)] {
        let prefix = format!("{group}-");
        secured.allow(user, &["Write", "Describe"], &["--transactional-id", &prefix, "--resource-pattern-type", "prefixed"]);
    }
    secured.allow("desk", &["Read", "Write", "Describe"], &topics(&[&names.opt_outs]));
    secured.allow("auditor", &["Read", "Describe"], &topics(&all));
    secured.allow("auditor", &["Describe"], &["--group", &names.filter_group, "--group", &names.detect_group]);

    let stage = |verb: &str, mechanism: &str| {
        let start = world.serving(verb, verb).variable("STOPGATE_LOG", "debug");
        secured.as_user(start, &world, verb, mechanism, SECRET, &secured.certificate).spawn()
    };
    let (mut detect, mut filter) = (stage("detect", "SCRAM-SHA-512"), stage("filter", "PLAIN"));
    detect.ready();
    filter.ready();
    let outcomes = world.outcomes();
    world.asks("before", &ada);
    outcomes.await_allowed("before");
    world.says(&ada, "STOP");
    let opt_outs = world.kafka.reader(&names.opt_outs, crate::support::kafka::Isolation::Committed);
    opt_outs.find("the opt-out", |record| record.key_text().contains(&ada));
    world.asks("after", &ada);
    outcomes.await_suppressed("after");

    add("desk").finish().expect_code(0);
    verb("opt-out show", "auditor").arg("--business", "acme").arg("--to", &ada).finish().expect_code(0);
    assert_ne!(add("auditor").finish().code, 0, "who may only read cannot enter anything");
    for stage in ["filter", "detect"] {
        let replayed = verb("replay", "auditor").arg("--stage", stage).finish();
        assert_eq!(replayed.code, 0, "{}", replayed.text());
    }
    verb("explain", "auditor").arg("--recipient", &ada).finish().expect_code(0);
    for stage in [detect, filter] {
        let log = stage.terminate();
        assert!(!log.contains(SECRET) && !log.contains(&ada), "a secret or an address is in the log");
    }
}

#[test]
fn a_wrong_password_and_a_wrong_certificate_are_told_and_no_secret_is() {
    let Some(secured) = Secured::start() else { return };
    let world = World::new(&secured.broker, "strangers");
    let other = tempfile::tempdir().expect("a directory");
    let Some((stranger, _)) = certificate(other.path()) else { return };
    for (password, certificate, says) in
        [("wrong-horse", secured.certificate.as_str(), "authentication"), (SECRET, stranger.as_str(), "certificate")]
    {
        let start = Start::verb("opt-out show").arg("--business", "acme").arg("--to", &phone(1)).variable("STOPGATE_LOG", "stopgate=info");
        let finished = secured.as_user(start, &world, "desk", "SCRAM-SHA-512", password, certificate).finish();
        assert_ne!(finished.code, 0, "{}", finished.text());
        let text = finished.text();
        assert!(text.to_lowercase().contains(says) && !text.contains(password), "{says}: {text}");
    }
    // A service waits for brokers, and its log says why it must.
    let start = Start::serving("filter").variable("STOPGATE_LOG", "stopgate=info");
    let mut filter = secured.as_user(start, &world, "filter", "SCRAM-SHA-512", SECRET, &stranger).spawn();
    filter.unready(|reasons| reasons.contains("broker"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !filter.stderr().to_lowercase().contains("certificate") {
        assert!(Instant::now() < deadline, "{}", filter.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!filter.terminate().contains(SECRET));
}
