//! Conversations from text files, all of `tests/scenarios`; and that a file which tells something else fails.

use std::path::{Path, PathBuf};

use crate::support::service::Start;
use stopgate::run::scenario::play;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn every_conversation_goes_as_its_file_says() {
    let files = files();
    assert!(files.len() >= 8, "{files:?}");
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a text");
        let mut told = Vec::new();
        let same = play(&text, &mut told).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(same, "{}\n{}", path.display(), String::from_utf8_lossy(&told));
    }
}

#[test]
fn a_file_that_tells_something_else_fails_and_says_where() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wrong.txt");
    let wrong =
        "Ada is +12025550143\n\n09:00 Ada says \"STOP\"\n    record opted-out marketing\n    reply help\n09:01 marketing to Ada\n    allowed\n";
    std::fs::write(&path, wrong).expect("written");
    let path = path.display().to_string();
    let ended = Start::verb("demo").arg("--scenario", &path).finish();
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    for part in [
        "✗ not expected: reply opt-out-confirmation",
        "✗ line 3: expected and did not follow: reply help",
        "✗ not expected: suppressed opted-out",
    ] {
        assert!(ended.stdout.contains(part), "{part} is missing in:\n{}", ended.stdout);
    }
    std::fs::write(&path, "09:00 Ada shouts\n").expect("written");
    let ended = Start::verb("demo").arg("--scenario", &path).finish();
    assert!(ended.code == 2 && ended.stderr.contains("line 1"), "{}", ended.stderr);
}
