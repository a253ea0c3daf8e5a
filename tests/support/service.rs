//! The program under test as a child process: its verbs, its HTTP port, its signals, its exit code.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::process::{Supervised, tail};
use super::wait::{DEADLINE, wait_for};

/// How long the program may take to end after `SIGTERM`, by its contract.
pub const DRAIN: Duration = Duration::from_secs(10);

/// The path of the program.
fn program() -> &'static str {
    env!("CARGO_BIN_EXE_stopgate")
}

/// How to start the program.
#[derive(Clone, Debug, Default)]
pub struct Start {
    verb: String,
    arguments: Vec<(String, String)>,
    words: Vec<String>,
    config: Option<String>,
    variables: Vec<(String, String)>,
    serving: bool,
    /// Whether to choose a free port for HTTP.
    http: bool,
}

impl Start {
    /// A verb that ends by itself, such as `topics` or `opt-out add`.
    pub fn verb(verb: &str) -> Start {
        Start { verb: verb.into(), ..Start::default() }
    }

    /// A verb that serves (`run`, `detect`, `filter`), with its HTTP on a free port.
    pub fn serving(verb: &str) -> Start {
        Start { verb: verb.into(), serving: true, http: true, ..Start::default() }
    }

    /// An option with its value, in place of an earlier one of that name.
    pub fn arg(mut self, name: &str, value: &str) -> Start {
        self.http &= name != "--http";
        self.arguments.retain(|(known, _)| known != name);
        self.arguments.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What an option was given.
    pub fn value(&self, name: &str) -> &str {
        self.arguments.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A word on its own: a positional argument or a flag.
    pub fn word(mut self, word: &str) -> Start {
        self.words.push(word.to_owned());
        self
    }

    /// The text of the configuration file.
    pub fn config(mut self, text: &str) -> Start {
        self.config = Some(text.to_owned());
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Start {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the program.
    pub fn spawn(&self) -> Service {
        let directory =
            tempfile::Builder::new().prefix("stopgate-test-").tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        self.spawn_in(directory)
    }

    /// Starts the program with the directory, and so the state, of an earlier one.
    pub fn spawn_in(&self, directory: tempfile::TempDir) -> Service {
        let mut command: Vec<String> = std::iter::once(program()).chain(self.verb.split(' ')).map(str::to_owned).collect();
        if let Some(text) = &self.config {
            let path = directory.path().join("stopgate.toml");
            fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write a configuration: {error}"));
            command.extend(["--config".into(), path.display().to_string()]);
        }
        let address = self.http.then(free_address);
        if let Some(address) = &address {
            command.extend(["--http".into(), address.clone()]);
        }
        if self.serving {
            command.extend(["--state-dir".into(), directory.path().join("state").display().to_string()]);
        }
        command.extend(self.words.iter().cloned());
        command.extend(self.arguments.iter().flat_map(|(name, value)| [name.clone(), value.clone()]));
        let process = Supervised::spawn(directory.path(), &command, &self.variables);
        Service { process, address, name: self.verb.clone(), directory }
    }

    /// Runs a verb to its end.
    #[track_caller]
    pub fn finish(&self) -> Finished {
        let service = self.spawn();
        let Some(code) = service.process.wait(DEADLINE) else {
            panic!("stopgate {} did not end within {DEADLINE:?}:\n{}", self.verb, service.stderr())
        };
        Finished { code, stdout: service.process.stdout(), stderr: service.process.stderr() }
    }
}

/// What a verb left.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Everything that it printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.code, code, "exit code; printed:\n{}", self.text());
        self
    }
}

/// The running program. Killed when dropped; its log is shown if the test fails.
pub struct Service {
    // Before the directory, so that it is dropped first.
    process: Supervised,
    address: Option<String>,
    name: String,
    directory: tempfile::TempDir,
}

impl Service {
    /// `HOST:PORT` of its HTTP side.
    pub fn address(&self) -> &str {
        self.address.as_deref().unwrap_or_else(|| panic!("stopgate {} serves no HTTP", self.name))
    }

    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until `/readyz` answers 200.
    #[track_caller]
    pub fn ready(&mut self) -> &mut Service {
        self.await_status(200, |_| true);
        self
    }

    /// Waits until `/readyz` answers 503 with a body that fits; returns the body.
    #[track_caller]
    pub fn unready(&mut self, fits: impl Fn(&str) -> bool) -> String {
        self.await_status(503, fits)
    }

    #[track_caller]
    fn await_status(&mut self, status: u16, fits: impl Fn(&str) -> bool) -> String {
        let address = self.address().to_owned();
        let started = std::time::Instant::now();
        loop {
            let seen = get(&address, "/readyz");
            match &seen {
                Ok((found, body)) if *found == status && fits(body) => return body.clone(),
                _ => {}
            }
            if let Some(code) = self.process.exit_code() {
                panic!("stopgate {} ended with {code} while /readyz was awaited", self.name);
            }
            if started.elapsed() > DEADLINE {
                panic!("waited {DEADLINE:?} for /readyz {status} of stopgate {}; last seen: {seen:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and body of a path.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        get(self.address(), path)
    }

    /// The sum of all samples of a metric whose labels contain every one of `labels` (`name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics").unwrap_or_else(|error| panic!("no /metrics: {error}"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, set) = series.split_once('{').unwrap_or((series, ""));
                let fits = found == name && labels.iter().all(|label| set.contains(label));
                fits.then(|| value.parse::<f64>().ok())?
            })
            .sum()
    }

    /// Sends a signal by name.
    /// Memory that it has resident now and had at most, in bytes.
    pub fn resident_bytes(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() * 1024
        };
        (bytes("VmRSS:"), bytes("VmHWM:"))
    }

    /// Its process: the one whose command names the directory and that is no shell.
    fn pid(&self) -> u32 {
        let ours = self.directory.path().join("state").display().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let is_ours = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            words.next() == Some(program().as_bytes()) && words.any(|word| word == ours.as_bytes())
        };
        let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        pids.into_iter().find(is_ours).unwrap_or_else(|| panic!("no process of {}", self.name))
    }

    pub fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    /// Ends it with `SIGTERM`, which must drain and exit 0 in time; the log.
    #[track_caller]
    pub fn terminate(mut self) -> String {
        self.process.signal("TERM");
        let code = self.process.wait(DRAIN);
        assert_eq!(code, Some(0), "exit code within {DRAIN:?} of SIGTERM");
        self.process.stderr()
    }

    /// Ends it with `SIGKILL`. The directory, and so its state, is returned for a successor.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.process.signal("KILL");
        let code = self.process.wait(DRAIN);
        assert_eq!(code, Some(137), "exit code after SIGKILL");
        // The rest of the service goes; nothing in it removes the directory.
        let empty = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        std::mem::replace(&mut self.directory, empty)
    }

    /// Waits for it to end by itself; code and log.
    #[track_caller]
    pub fn ended(&mut self) -> (i32, String) {
        let code = wait_for("the end of the program", DEADLINE, || self.process.exit_code().ok_or_else(|| tail(&self.process.stderr(), 5)));
        (code, self.process.stderr())
    }

    #[track_caller]
    pub fn still_runs(&mut self) {
        if let Some(code) = self.process.exit_code() {
            panic!("stopgate {} ended with {code}", self.name);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of stopgate {} ends with:\n{}\n---", self.name, tail(&self.process.stderr(), 60));
        }
    }
}

/// Status and body of a path.
pub fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    request(address, "GET", path, &[], "")
}

/// One HTTP/1.1 request, by hand: the tests need no client library for this.
pub fn request(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    write!(stream, "{head}\r\n")?;
    // A server that has heard enough closes before the end: what it said before counts.
    let unheard = stream.write_all(body.as_bytes()).err();
    let mut bytes = Vec::new();
    let mut chunk = [0; 16384];
    // To the end that the answer announces, since some servers keep the connection; else to the end of the connection.
    while !is_whole(&bytes) {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if bytes.is_empty() => return Err(unheard.unwrap_or(error)),
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP response: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok((status, unchunk(body).ok_or_else(bad)?));
    }
    Ok((status, body.to_owned()))
}

/// Whether a response has all the bytes that its head announces.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).and_then(|length| length.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= end + 4 + length)
}

fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size + 2..)?;
    }
}

/// An address on the loopback interface that is free now.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap_or_else(|error| panic!("no free port: {error}"))
        .to_string()
}
