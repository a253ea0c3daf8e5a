//! `stopgate demo` on the embedded broker: what a newcomer sees first.

use std::process::Command;

#[test]
fn the_demo_shows_each_message_and_each_send_and_ends_by_itself() {
    let output = Command::new(env!("CARGO_BIN_EXE_stopgate")).arg("demo").output().expect("the program starts");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "→ opt-out by rule en.keyword.stop: acme|whatsapp|phone:+12025550143|marketing",
        "→ reply: Você não receberá mais mensagens promocionais nossas.",
        "→ nothing to do: no wish to stop",
        "suppressed: opted-out, by opt-outs record ",
        "8 messages, 6 opt-outs, 6 confirmations; 9 sends: 3 allowed, 6 suppressed.",
    ] {
        assert!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
}
