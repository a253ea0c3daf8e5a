//! One thread at a time: whoever holds the turn runs until it calls the world, then the scheduler chooses anew.
//!
//! The threads are real, so that the program's own blocking code runs as it is; the order is the seed's alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

enum Go {
    Run,
    /// Die here, wherever that is.
    Crash,
}

enum Said {
    /// The next call to the world waits for a turn.
    Waits,
    /// The thread has ended; with a text where it panicked.
    Ended(Option<String>),
}

/// What is thrown through a thread that crashes.
struct Crashed;

/// A thread's side.
pub struct Turn {
    say: Sender<Said>,
    go: Receiver<Go>,
}

impl Turn {
    /// Gives the turn back and waits for the next one. A crash unwinds from here.
    pub fn wait(&self) {
        if self.say.send(Said::Waits).is_err() {
            resume_unwind(Box::new(Crashed));
        }
        match self.go.recv() {
            Ok(Go::Run) => {}
            Ok(Go::Crash) | Err(_) => resume_unwind(Box::new(Crashed)),
        }
    }
}

/// The scheduler's side of one thread.
pub struct Actor {
    go: Sender<Go>,
    said: Receiver<Said>,
    thread: Option<JoinHandle<()>>,
    pub ended: bool,
}

impl Actor {
    /// Starts a thread that waits for its first turn.
    pub fn start(body: impl FnOnce(Turn) + Send + 'static) -> Self {
        let (go, receive_go) = channel();
        let (say, said) = channel();
        let thread = std::thread::spawn(move || {
            let ended = say.clone();
            let turn = Turn { say, go: receive_go };
            let result = catch_unwind(AssertUnwindSafe(|| {
                turn.wait();
                body(turn);
            }));
            let text = result.err().filter(|thrown| !thrown.is::<Crashed>()).map(text_of);
            // Nobody listens any more where the whole run was given up.
            drop(ended.send(Said::Ended(text)));
        });
        let mut actor = Self { go, said, thread: Some(thread), ended: false };
        drop(actor.hear());
        actor
    }

    /// Lets the thread run until its next call to the world. An error is a panic.
    pub fn run(&mut self) -> Result<(), String> {
        if self.ended || self.go.send(Go::Run).is_err() {
            return Ok(());
        }
        self.hear()
    }

    /// Ends the thread where it stands.
    pub fn crash(&mut self) {
        drop(self.go.send(Go::Crash));
        while !self.ended {
            drop(self.hear());
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }

    fn hear(&mut self) -> Result<(), String> {
        match self.said.recv() {
            Ok(Said::Waits) => Ok(()),
            Ok(Said::Ended(None)) | Err(_) => {
                self.ended = true;
                Ok(())
            }
            Ok(Said::Ended(Some(text))) => {
                self.ended = true;
                Err(text)
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.crash();
    }
}

fn text_of(thrown: Box<dyn Any + Send>) -> String {
    match (thrown.downcast_ref::<String>(), thrown.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without a text".to_owned(),
    }
}
