//! The console in a real browser: Chromium, headless, driven over WebDriver. Skips, with a printed reason, where there is none.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::service::{Start, free_address, request};
use crate::support::wait::{DEADLINE, wait_for};

/// A browser with one page.
struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Option<Browser> {
        let address = free_address();
        let port = address.rsplit(':').next().unwrap_or_default();
        let spawned = Command::new("chromedriver").arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(driver) = spawned else {
            drop(std::io::stderr().write_all(b"skipped the console's test: no chromedriver (Debian packages chromium, chromium-driver)\n"));
            return None;
        };
        let profile = tempfile::tempdir().expect("a directory");
        let mut browser = Browser { driver, address, session: String::new(), _profile: profile };
        wait_for("chromedriver", DEADLINE, || request(&browser.address, "GET", "/status", &[], "").map_err(|error| error.to_string()));
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,1600",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={}", browser._profile.path().display()));
        let options = json!({ "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } } } });
        let session = browser.sends("POST", "/session", wanted);
        match session["sessionId"].as_str() {
            Some(session) => browser.session = session.to_owned(),
            None => {
                // A machine that cannot start a browser has none; what it says is for whoever looks into it.
                drop(writeln!(std::io::stderr(), "skipped the console's test: no browser starts: {}", session["message"]));
                return None;
            }
        }
        Some(browser)
    }

    fn sends(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (_, text) = request(&self.address, method, path, &[("Content-Type", "application/json")], &body).expect("an answer");
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))["value"].take()
    }

    fn of_page(&self, path: &str, body: Value) -> Value {
        self.sends("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn runs(&self, script: &str) -> Value {
        self.of_page("/execute/sync", json!({ "script": script, "args": [] }))
    }

    fn text(&self, selector: &str) -> String {
        self.runs(&format!("return document.querySelector({selector:?}).innerText")).as_str().unwrap_or_default().to_owned()
    }

    fn awaits(&self, selector: &str, part: &str) {
        wait_for(&format!("{part:?} in {selector}"), DEADLINE, || {
            let text = self.text(selector);
            if text.contains(part) { Ok(()) } else { Err(text) }
        });
    }

    /// Keys go to what has the focus: as a person without a mouse.
    fn types(&self, keys: &str) {
        let actions: Vec<Value> =
            keys.chars().flat_map(|key| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]).collect();
        self.of_page("/actions", json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }));
    }

    fn focuses(&self, id: &str) {
        self.runs(&format!("const it = document.getElementById({id:?}); it.focus(); if (it.select) it.select();"));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            self.sends("DELETE", &format!("/session/{}", self.session), Value::Null);
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';

#[test]
fn the_console_shows_what_happens_and_is_used_without_a_mouse() {
    let Some(browser) = Browser::start() else { return };
    let address = free_address();
    let mut demo = Start::verb("demo").word("--serve").arg("--http", &address).spawn();
    wait_for("the demo", DEADLINE, || request(&address, "GET", "/readyz", &[], "").map_err(|error| error.to_string()));
    browser.of_page("/url", json!({ "url": format!("http://{address}/") }));
    browser.awaits("#ready", "ready");
    browser.awaits("#recent", "opted-out");
    browser.awaits("#state", "a second");
    wait_for("marked words", DEADLINE, || {
        let marked = browser.runs("return document.querySelectorAll('#recent mark').length").as_u64().unwrap_or_default();
        if marked > 0 { Ok(()) } else { Err(marked) }
    });

    browser.focuses("try-text");
    browser.types(&format!("stop texting me{TAB}{ENTER}"));
    browser.awaits("#try-told", "OPT_OUT");
    assert_eq!(browser.runs("return document.querySelector('#try-told mark').textContent"), json!("stop texting me"));

    // Somebody nobody has heard of, opted out and in again, by keys alone.
    browser.focuses("find-business");
    browser.types(&format!("acme{TAB}{TAB}+12025559999{ENTER}"));
    browser.awaits("#find-told", "allowed");
    browser.awaits("#find-list", "Nothing was ever said");
    browser.focuses("find-add");
    browser.types(&ENTER.to_string());
    browser.awaits("#confirm-title", "Opt out?");
    browser.focuses("confirm-reason");
    browser.types(&format!("rang <b>us</b>{TAB}{ENTER}"));
    browser.awaits("#find-told", "suppressed");
    browser.awaits("#find-list", "rang <b>us</b>");
    assert_eq!(browser.runs("return document.querySelectorAll('#find-list b').length"), json!(0), "what people write is text");
    browser.focuses("find-remove");
    browser.types(&ENTER.to_string());
    browser.awaits("#confirm-title", "Opt in?");
    browser.focuses("confirm-proof");
    browser.types(&format!("letter of 3 May{TAB}{TAB}{ENTER}"));
    browser.awaits("#find-told", "opted-in-again");
    browser.focuses("find-story");
    browser.types(&ENTER.to_string());
    browser.awaits("#find-list", "letter of 3 May");

    // A review is judged.
    browser.awaits("#reviews", "too many messages");
    browser.runs("document.querySelector('#reviews button:last-of-type').focus()");
    browser.types(&ENTER.to_string());
    browser.awaits("#confirm-title", "No wish to stop?");
    browser.focuses("confirm-yes");
    browser.types(&ENTER.to_string());
    browser.awaits("#reviews-told", "Judged.");

    // Nothing is loaded from elsewhere, nothing broke, and nothing sticks out on a phone.
    let loaded = browser.runs("return performance.getEntriesByType('resource').map(it => new URL(it.name).host)");
    assert!(loaded.as_array().is_some_and(|hosts| hosts.iter().all(|host| *host == json!(address))), "{loaded}");
    let log = browser.of_page("/se/log", json!({ "type": "browser" }));
    // Answers such as "nothing is known" are in the log as well, as the network's.
    let is_error = |entry: &&Value| entry["level"] == "SEVERE" && entry["source"] != "network";
    let errors: Vec<&Value> = log.as_array().into_iter().flatten().filter(is_error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    browser.of_page("/window/rect", json!({ "width": 400, "height": 800 }));
    assert_eq!(browser.runs("return document.documentElement.scrollWidth <= window.innerWidth"), json!(true));
    let unlabelled = "return [...document.querySelectorAll('input,textarea')].filter(it => !it.labels.length).length";
    assert_eq!(browser.runs(unlabelled), json!(0));
    demo.still_runs();
    demo.signal("TERM");
    assert_eq!(demo.ended().0, 0);
}
