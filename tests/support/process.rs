//! Child processes that do not outlive the test process, however that ends.
//!
//! A child runs under a small shell script that reads words from a pipe held by the test process: names of signals for
//! the child, and `leave`. The end of the pipe without that word, which the kernel brings about at any exit, kills the
//! child and removes its directory.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// First argument: the directory for `stdout`, `stderr` and, once the child has ended, `exit.` and the script's own
/// process id; the rest: the command.
const SUPERVISOR: &str = r#"
dir=$1; shift
exec 3<&0
"$@" </dev/null >>"$dir/stdout" 2>>"$dir/stderr" 3<&- &
child=$!
(
  while read -r word <&3; do
    if [ "$word" = leave ]; then exit 0; fi
    [ -e "$dir/exit.$$" ] || kill -s "$word" "$child"
  done
  [ -e "$dir/exit.$$" ] || { kill -s CONT "$child"; kill -s KILL "$child"; }
  exit 1
) 2>/dev/null &
reader=$!
exec 3<&- </dev/null
wait "$child"
echo $? >"$dir/exit.new" && mv "$dir/exit.new" "$dir/exit.$$"
wait "$reader" || rm -rf "$dir"
"#;

/// A running child. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub struct Supervised {
    supervisor: Child,
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
        let Some(pipe) = self.pipe.as_mut() else { panic!("the supervisor has no pipe") };
        writeln!(pipe, "{name}").unwrap_or_else(|error| panic!("cannot signal the child: {error}"));
    }

    /// The exit code, once the child has ended; 128 + n after signal n.
    pub fn exit_code(&self) -> Option<i32> {
        let text = fs::read_to_string(self.directory.join(format!("exit.{}", self.supervisor.id()))).ok()?;
        Some(text.trim().parse().unwrap_or(-1))
    }

    /// Waits for the end of the child; `None` if it still runs after that time.
    pub fn wait(&self, within: Duration) -> Option<i32> {
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
    /// The directory belongs to whoever gave it.
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // Where the supervisor is gone already, so is the child.
            drop(pipe.write_all(b"CONT\nKILL\nleave\n"));
        }
        drop(self.supervisor.wait());
    }
}

/// The last lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
