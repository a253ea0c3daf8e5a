//! Child processes that do not outlive the test process, however that ends.
//!
//! A child runs under a small shell script that reads signal names from a pipe held by the test process. The end of
//! the pipe, which the kernel brings about at any exit, kills the child and removes its directory.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// First argument: the directory for `stdout` and `stderr`; the rest: the command.
const SUPERVISOR: &str = r#"
dir=$1; shift
exec 3<&0
"$@" </dev/null >>"$dir/stdout" 2>>"$dir/stderr" 3<&- &
child=$!
(
  while read -r signal <&3; do kill -s "$signal" "$child"; done
  : >"$dir/abandoned"
  kill -s CONT "$child"; kill -s KILL "$child"
) 2>/dev/null &
reader=$!
exec 3<&- </dev/null
wait "$child"; status=$?
if [ -e "$dir/abandoned" ]; then rm -rf "$dir"; else kill -s KILL "$reader"; fi
exit "$status"
"#;

/// A running child. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub struct Supervised {
    supervisor: Child,
    /// `None` once the child has ended.
    pipe: Option<ChildStdin>,
    directory: PathBuf,
}

impl Supervised {
    /// Starts `command`; its standard output and error are appended to files of these names in `directory`, which is
    /// removed if the test process ends before the child.
    pub fn spawn(directory: &Path, command: &[String], variables: &[(String, String)]) -> Supervised {
        let mut supervisor = Command::new("/bin/sh")
            .args(["-c", SUPERVISOR, "stopgate-test-child"])
            .arg(directory)
            .args(command)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // An interrupt from the terminal is for the test process; the child follows it by the pipe.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run /bin/sh: {error}"));
        let pipe = supervisor.stdin.take();
        Supervised { supervisor, pipe, directory: directory.to_owned() }
    }

    /// Sends the signal of this name (`TERM`, `KILL`, `STOP`, …).
    #[track_caller]
    pub fn signal(&mut self, name: &str) {
        let Some(pipe) = self.pipe.as_mut() else { panic!("the child has ended, it cannot be signalled") };
        writeln!(pipe, "{name}").unwrap_or_else(|error| panic!("cannot signal the child: {error}"));
    }

    /// The exit code, once the child has ended; 128 + n after signal n.
    pub fn exit_code(&mut self) -> Option<i32> {
        let status = self.supervisor.try_wait().unwrap_or_else(|error| panic!("lost the child: {error}"))?;
        self.pipe = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits for the end of the child; `None` if it still runs after that time.
    pub fn wait(&mut self, within: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            match self.exit_code() {
                Some(code) => return Some(code),
                None if started.elapsed() > within => return None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn stdout(&self) -> String {
        self.output("stdout")
    }

    pub fn stderr(&self) -> String {
        self.output("stderr")
    }

    fn output(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.join(name)).unwrap_or_default()).into_owned()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        drop(self.pipe.take());
        drop(self.supervisor.wait());
    }
}

/// The last lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
