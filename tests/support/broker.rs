//! A real Apache Kafka broker for the tests: found, started, and stopped with the test process.
//!
//! Sources, in this order: `STOPGATE_TEST_BOOTSTRAP` (a running broker, used as it is), `KAFKA_HOME` (an unpacked
//! distribution), Java and Maven (`tests/pom.xml` names the jars, Maven fetches them once into the target directory).
//! Without any of them the suites skip with a printed reason; `STOPGATE_REQUIRE_BROKER=1` makes that a failure.
//!
//! Invariants. One shared broker serves the whole run. A broker never outlives the test process, however that ends
//! (see `process`). Nothing here knows a topic.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::kafka::Kafka;
use super::process::{Supervised, tail};

/// How long a broker may take until it answers. Three seconds are usual; the rest is for busy build machines.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// The oldest Java that Kafka 4 brokers run on.
const JAVA_AT_LEAST: u32 = 17;

/// Any sixteen bytes in base64; every broker here is its own cluster.
const CLUSTER_ID: &str = "c3RvcGdhdGUtdGVzdC0wMQ";

/// What a suite may wish for that starts a broker of its own.
#[derive(Clone, Debug)]
pub struct Options {
    /// Java heap, as in `-Xmx`.
    pub heap: &'static str,
    /// Only the first compiler of Java: starts sooner, serves slower. Measurements want `false`.
    pub quick_start: bool,
    /// Broker settings over those of [`server_properties`]; `{port}`, `{second}` and `{controller}` stand for free ports.
    pub properties: Vec<(String, String)>,
    /// More arguments for the formatting of its directory, such as users.
    pub format: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { heap: "1g", quick_start: true, properties: Vec::new(), format: Vec::new() }
    }
}

/// Why there is no broker.
#[derive(Clone, Debug)]
pub enum Unavailable {
    /// This machine offers none: suites skip.
    NotFound(String),
    /// This machine offers one, and it does not work: suites fail.
    Broken(String),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::NotFound(reason) | Unavailable::Broken(reason) => f.write_str(reason),
        }
    }
}

/// A broker that answers.
pub struct Broker {
    /// Its own address.
    address: String,
    /// Addresses for clients: its own, and of a cluster those of all.
    bootstrap: String,
    kafka: Kafka,
    /// `None` for a broker that was running before.
    own: Option<OwnBroker>,
}

struct OwnBroker {
    // Before the directory, so that it is dropped first.
    process: Mutex<Option<Supervised>>,
    command: Vec<String>,
    /// Another port that is kept for it.
    second: u16,
    class_path: String,
    directory: tempfile::TempDir,
}

impl Broker {
    /// The broker of this test run, started by whoever asks first. `None`, with the reason printed: skip the test.
    ///
    /// # Panics
    /// If there is none and `STOPGATE_REQUIRE_BROKER=1`, or if there is one that does not work.
    pub fn shared() -> Option<&'static Broker> {
        static SHARED: OnceLock<Result<Broker, Unavailable>> = OnceLock::new();
        // Nobody restarts it, and on a busy machine it may be late.
        let patient = || Options { properties: vec![("broker.session.timeout.ms".into(), "30000".into())], ..Options::default() };
        match SHARED.get_or_init(|| Broker::find(&patient())) {
            Ok(broker) => Some(broker),
            Err(why) => skip_or_fail(why),
        }
    }

    /// A broker for one suite alone, gone when it is dropped. `None` as in [`Broker::shared`]; also where the only
    /// broker is a running one, since that cannot be stopped, or given other settings.
    pub fn start(options: &Options) -> Option<Broker> {
        let found = match std::env::var("STOPGATE_TEST_BOOTSTRAP") {
            Ok(_) => Err(Unavailable::NotFound("the suite needs a broker of its own, and STOPGATE_TEST_BOOTSTRAP names a running one".into())),
            Err(_) => Broker::launch(options),
        };
        match found {
            Ok(broker) => Some(broker),
            Err(why) => skip_or_fail(&why),
        }
    }

    fn find(options: &Options) -> Result<Broker, Unavailable> {
        if let Ok(bootstrap) = std::env::var("STOPGATE_TEST_BOOTSTRAP") {
            let broker = Broker { kafka: Kafka::new(&bootstrap), address: bootstrap.clone(), bootstrap, own: None };
            return match broker.kafka().answers(Duration::from_secs(10)) {
                Ok(()) => Ok(broker),
                Err(error) => Err(Unavailable::Broken(format!("STOPGATE_TEST_BOOTSTRAP={} does not answer: {error}", broker.bootstrap))),
            };
        }
        Broker::launch(options)
    }

    /// Three brokers for one suite alone, each broker and controller, every topic on all of them and every record on two before it is
    /// acknowledged. `None` as in [`Broker::start`].
    pub fn start_cluster() -> Option<Vec<Broker>> {
        let found = match std::env::var("STOPGATE_TEST_BOOTSTRAP") {
            Ok(_) => Err(Unavailable::NotFound("the suite needs brokers of its own, and STOPGATE_TEST_BOOTSTRAP names a running one".into())),
            Err(_) => launched(Broker::launch_cluster),
        };
        match found {
            Ok(brokers) => Some(brokers),
            Err(why) => skip_or_fail(&why),
        }
    }

    fn launch_cluster(java: &Path, class_path: &str) -> Result<Vec<Broker>, String> {
        let ports: [u16; 6] = free_ports().map_err(|error| format!("no free port: {error}"))?;
        let nodes = || (1..).zip(ports.chunks_exact(2));
        let voters: Vec<String> = nodes().map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports[1])).collect();
        let bootstrap: Vec<String> = ports.iter().step_by(2).map(|port| format!("127.0.0.1:{port}")).collect();
        let brokers = nodes().map(|(id, node)| {
            let replicated = ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"]
                .map(|topic| (format!("{topic}.replication.factor"), "3"));
            let own = [
                ("node.id".to_owned(), id.to_string()),
                ("controller.quorum.voters".to_owned(), voters.join(",")),
                ("default.replication.factor".to_owned(), "3".to_owned()),
                ("min.insync.replicas".to_owned(), "2".to_owned()),
                ("transaction.state.log.min.isr".to_owned(), "2".to_owned()),
            ];
            let properties = replicated.into_iter().map(|(name, value)| (name, value.to_owned())).chain(own).collect();
            let options = Options { heap: "512m", properties, ..Options::default() };
            Broker::prepare(&options, java, class_path, [node[0], 0, node[1]], &bootstrap.join(","))
        });
        let brokers: Vec<Broker> = brokers.collect::<Result<_, _>>()?;
        // One alone has no majority: all of them first, then what they say.
        brokers.iter().try_for_each(Broker::spawn)?;
        brokers.iter().try_for_each(Broker::await_up)?;
        Ok(brokers)
    }

    fn launch(options: &Options) -> Result<Broker, Unavailable> {
        launched(|java, class_path| Broker::launch_once(options, java, class_path))
    }

    fn launch_once(options: &Options, java: &Path, class_path: &str) -> Result<Broker, String> {
        let ports: [u16; 3] = free_ports().map_err(|error| format!("no free port: {error}"))?;
        let broker = Broker::prepare(options, java, class_path, ports, &format!("127.0.0.1:{}", ports[0]))?;
        broker.up()?;
        Ok(broker)
    }

    /// A broker with its directory, not started yet; the ports are its own, another one that is kept for it, and its controller's.
    fn prepare(options: &Options, java: &Path, class_path: &str, ports: [u16; 3], bootstrap: &str) -> Result<Broker, String> {
        let directory = tempfile::Builder::new()
            .prefix("stopgate-kafka-")
            .tempdir()
            .map_err(|error| format!("no temporary directory for the broker: {error}"))?;
        let [port, second, controller_port] = ports;
        let properties = directory.path().join("server.properties");
        let logging = directory.path().join("log4j2.properties");
        let text = server_properties(port, controller_port, directory.path(), &options.properties);
        let ports = [("{port}", port), ("{second}", second), ("{controller}", controller_port)];
        let text = ports.iter().fold(text, |text, (name, port)| text.replace(name, &port.to_string()));
        fs::write(&properties, text)
            .and_then(|()| fs::write(&logging, LOG4J2_PROPERTIES))
            .map_err(|error| format!("cannot write the broker's settings: {error}"))?;

        let mut base = vec![java.to_string_lossy().into_owned()];
        base.extend(["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-Djava.awt.headless=true"].map(String::from));
        base.push(format!("-Dlog4j2.configurationFile={}", logging.display()));
        base.push("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".into());
        let arguments = |heap: &str, quick: bool, main: &[&str]| {
            let mut command = base.clone();
            command.push(format!("-Xmx{heap}"));
            if quick {
                command.push("-XX:TieredStopAtLevel=1".into());
            }
            command.extend(["-cp".into(), class_path.to_owned()]);
            command.extend(main.iter().map(|word| (*word).to_owned()));
            command.push(properties.to_string_lossy().into_owned());
            command
        };

        let mut format = arguments("256m", true, &["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]);
        format.extend(options.format.iter().cloned());
        let formatted = Command::new(&format[0])
            .args(&format[1..])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run {}: {error}", format[0]))?;
        if !formatted.status.success() {
            return Err(format!(
                "formatting the broker's directory failed ({}): {}{}",
                formatted.status,
                String::from_utf8_lossy(&formatted.stdout),
                String::from_utf8_lossy(&formatted.stderr)
            ));
        }

        let command = arguments(options.heap, options.quick_start, &["kafka.Kafka"]);
        let own = OwnBroker { directory, command, second, class_path: class_path.to_owned(), process: Mutex::new(None) };
        let address = format!("127.0.0.1:{port}");
        Ok(Broker { kafka: Kafka::new(bootstrap), address, bootstrap: bootstrap.to_owned(), own: Some(own) })
    }

    /// `HOST:PORT` for clients.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The second port. Only for brokers of [`Broker::start`].
    pub fn second_port(&self) -> u16 {
        self.own().second
    }

    /// Runs one of Kafka's own tools. Only for brokers of [`Broker::start`].
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let own = self.own();
        let output = Command::new(&own.command[0])
            .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", &own.class_path, class])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {class}: {error}"));
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{class} {arguments:?}: {text}");
    }

    /// The tests' own client of this broker.
    pub fn kafka(&self) -> Kafka {
        self.kafka.clone()
    }

    /// A name that no other test, and no earlier run against the same broker, has used: `prefix` and a suffix.
    pub fn unique(&self, prefix: &str) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        static EPOCH: OnceLock<u128> = OnceLock::new();
        let epoch = EPOCH.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_micros()).unwrap_or_default());
        format!("{prefix}.{epoch:x}.{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends the broker in order (`SIGTERM`), keeping its directory. Only for brokers of [`Broker::start`].
    pub fn shut_down(&self) {
        self.signal("TERM");
        self.join();
    }

    /// Ends the broker at once (`SIGKILL`), keeping its directory. Only for brokers of [`Broker::start`].
    pub fn kill(&self) {
        self.signal("KILL");
        self.join();
    }

    /// Stops the broker's clock (`SIGSTOP`): connections stay open and nothing answers. Only for own brokers.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Ends [`Broker::freeze`].
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Starts the broker again after [`Broker::shut_down`] or [`Broker::kill`], on the same port and directory.
    pub fn restart(&self) {
        if let Err(reason) = self.up() {
            panic!("{reason}");
        }
    }

    fn own(&self) -> &OwnBroker {
        self.own.as_ref().unwrap_or_else(|| panic!("{} was not started by the tests", self.bootstrap))
    }

    fn up(&self) -> Result<(), String> {
        self.spawn()?;
        self.await_up()
    }

    fn spawn(&self) -> Result<(), String> {
        let own = self.own();
        let mut process = own.process.lock().map_err(|_| "an earlier start of the broker panicked".to_owned())?;
        assert!(process.is_none(), "the broker is running already");
        *process = Some(Supervised::spawn(own.directory.path(), &own.command, &[]));
        Ok(())
    }

    fn await_up(&self) -> Result<(), String> {
        let mut process = self.own().process.lock().map_err(|_| "an earlier start of the broker panicked".to_owned())?;
        let started = Instant::now();
        let Some(supervised) = process.as_mut() else { return Err("the broker was not started".to_owned()) };
        // First the port, cheaply; then a client, which proves that requests are served.
        while TcpStream::connect(&self.address).is_err() {
            if supervised.exit_code().is_some() || started.elapsed() > START_DEADLINE {
                let log = supervised.stdout() + &supervised.stderr();
                let took = started.elapsed().as_secs_f32();
                *process = None;
                return Err(format!("the broker did not start, after {took:.1} s; its log ends with:\n{}", tail(&log, 30)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kafka().answers(START_DEADLINE.saturating_sub(started.elapsed())).map_err(|error| format!("the broker does not answer: {error}"))
    }

    fn signal(&self, name: &str) {
        let mut process = self.own().process.lock().unwrap_or_else(|broken| broken.into_inner());
        let Some(supervised) = process.as_mut() else { panic!("the broker is not running") };
        supervised.signal(name);
    }

    /// Waits for the end of a broker that was signalled.
    fn join(&self) {
        let mut process = self.own().process.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Some(supervised) = process.take() {
            let ended = supervised.wait(START_DEADLINE);
            assert!(ended.is_some(), "the broker did not end within {START_DEADLINE:?}");
        }
    }
}

/// Starts brokers with what this machine has to run them.
fn launched<T>(mut launch: impl FnMut(&Path, &str) -> Result<T, String>) -> Result<T, Unavailable> {
    let java = java()?;
    let libs = match std::env::var_os("KAFKA_HOME") {
        Some(home) => kafka_home_libs(Path::new(&home))?,
        None => maven_libs()?,
    };
    let class_path = format!("{}/*", libs.display());
    // Ports are chosen free and then released, so another process may take one in between: try again with others.
    let mut last = String::new();
    for _attempt in 0..3 {
        match launch(&java, &class_path) {
            Ok(launched) => return Ok(launched),
            Err(reason) => last = reason,
        }
        if !last.contains("BindException") && !last.contains("Address already in use") {
            break;
        }
    }
    Err(Unavailable::Broken(last))
}

/// Prints why a test is skipped, past the capture of the test harness; panics where skipping is not allowed.
fn skip_or_fail<T>(why: &Unavailable) -> Option<T> {
    let required = std::env::var("STOPGATE_REQUIRE_BROKER").is_ok_and(|value| value == "1");
    match why {
        Unavailable::Broken(reason) => panic!("{reason}"),
        Unavailable::NotFound(reason) if required => panic!("STOPGATE_REQUIRE_BROKER=1, and {reason}"),
        Unavailable::NotFound(reason) => {
            let thread = std::thread::current();
            let line = format!("skipped {}: {reason}\n", thread.name().unwrap_or("a test"));
            drop(io::stderr().write_all(line.as_bytes()));
            None
        }
    }
}

/// The settings of one combined node (broker and controller), made for tests that wait for it.
fn server_properties(port: u16, controller_port: u16, directory: &Path, more: &[(String, String)]) -> String {
    let mut properties = vec![
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", "1".into()),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller_port}")),
        ("controller.listener.names", "CONTROLLER".into()),
        ("listeners", format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}")),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{port}")),
        ("log.dirs", directory.join("data").display().to_string()),
        // A typo must fail.
        ("auto.create.topics.enable", "false".into()),
        // One node holds everything.
        ("offsets.topic.replication.factor", "1".into()),
        ("transaction.state.log.replication.factor", "1".into()),
        ("transaction.state.log.min.isr", "1".into()),
        ("share.coordinator.state.topic.replication.factor", "1".into()),
        ("share.coordinator.state.topic.min.isr", "1".into()),
        ("offsets.topic.num.partitions", "4".into()),
        ("transaction.state.log.num.partitions", "4".into()),
        // The first member of a group is served at once.
        ("group.initial.rebalance.delay.ms", "0".into()),
        ("group.min.session.timeout.ms", "1000".into()),
        // Compaction soon after it is due; half a buffer of the default size is memory enough for tests.
        ("log.cleaner.backoff.ms", "200".into()),
        ("log.cleaner.dedupe.buffer.size", "16777216".into()),
        ("log.initial.task.delay.ms", "200".into()),
        // Records of recorded traffic carry old times, and must not vanish for it.
        ("log.retention.ms", "-1".into()),
        ("log.retention.check.interval.ms", "1000".into()),
        ("log.segment.delete.delay.ms", "1000".into()),
        // A killed broker may come back as soon as its registration has lapsed.
        ("broker.session.timeout.ms", "3000".into()),
        ("broker.heartbeat.interval.ms", "500".into()),
        // Transactions of crashed producers end soon after their time-out.
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "500".into()),
        // Tests do not outlive the machine: nothing is worth waiting for the disk.
        ("log.flush.scheduler.interval.ms", "9223372036854775807".into()),
        ("num.network.threads", "2".into()),
        ("num.io.threads", "4".into()),
        ("background.threads", "2".into()),
        ("num.recovery.threads.per.data.dir", "1".into()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    for (name, value) in more {
        properties.retain(|(known, _)| known != name);
        properties.push((name.clone(), value.clone()));
    }
    properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// For distributions, which come with this logger; the jars of `pom.xml` come with `slf4j-simple`.
const LOG4J2_PROPERTIES: &str = "\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c: %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
";

/// Ports on the loopback interface that are free now.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// The Java to run brokers with: of `JAVA_HOME`, else of `PATH`.
fn java() -> Result<PathBuf, Unavailable> {
    let java = match std::env::var_os("JAVA_HOME") {
        Some(home) => Path::new(&home).join("bin/java"),
        None => PathBuf::from("java"),
    };
    let none = "no broker: set STOPGATE_TEST_BOOTSTRAP to a running one, or KAFKA_HOME, or install Java and Maven";
    let output = Command::new(&java)
        .arg("-version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Unavailable::NotFound(format!("{none} (java: {error})")))?;
    // `openjdk version "17.0.15" 2025-04-15`; before Java 9 it began with "1.".
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let major = text.split('"').nth(1).and_then(|version| version.split(['.', '-', '+']).next()?.parse::<u32>().ok());
    match major {
        Some(major) if major >= JAVA_AT_LEAST => Ok(java),
        Some(major) => Err(Unavailable::NotFound(format!("{none} (Java {major} is too old: {JAVA_AT_LEAST} or later)"))),
        None => Err(Unavailable::NotFound(format!("{none} (java -version says nothing understandable)"))),
    }
}

fn kafka_home_libs(home: &Path) -> Result<PathBuf, Unavailable> {
    let libs = home.join("libs");
    if libs.is_dir() { Ok(libs) } else { Err(Unavailable::Broken(format!("KAFKA_HOME={} has no directory libs", home.display()))) }
}

/// The jars of `tests/pom.xml`, fetched on first use. The directory is named after the contents of the file, and
/// appears complete or not at all.
fn maven_libs() -> Result<PathBuf, Unavailable> {
    let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pom.xml");
    let text = fs::read(&pom).map_err(|error| Unavailable::Broken(format!("cannot read tests/pom.xml: {error}")))?;
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let libs = target.join("kafka").join(format!("libs-{:016x}", fnv1a(&text)));
    if libs.is_dir() {
        return Ok(libs);
    }
    let cannot_store = |error: io::Error| Unavailable::Broken(format!("cannot store the broker's jars: {error}"));
    fs::create_dir_all(target.join("kafka")).map_err(cannot_store)?;
    let partial = tempfile::Builder::new().prefix("fetch-").tempdir_in(target.join("kafka")).map_err(cannot_store)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", partial.path().display()))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Unavailable::NotFound(format!(
                "no broker: set STOPGATE_TEST_BOOTSTRAP to a running one, or KAFKA_HOME, or install Maven (mvn: {error})"
            ))
        })?;
    if !output.status.success() {
        return Err(Unavailable::NotFound(format!(
            "no broker: Maven cannot fetch the jars of tests/pom.xml ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    match fs::rename(partial.path(), &libs) {
        Ok(()) => drop(partial.keep()),
        // Another test process was faster.
        Err(_) if libs.is_dir() => {}
        Err(error) => return Err(cannot_store(error)),
    }
    Ok(libs)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
