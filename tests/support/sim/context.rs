//! A thread's way to the world: every call waits for a turn first.

use super::turn::Turn;
use super::world::World;
use parking_lot::Mutex;
use std::rc::Rc;
use std::sync::Arc;
use stopgate::kafka::EdgeError;
use stopgate::kafka::offsets::{Offsets, Unknown};
use stopgate::run::fence::Logs;

#[derive(Clone)]
pub struct Context {
    pub world: Arc<Mutex<World>>,
    pub turn: Rc<Turn>,
    /// The process this thread belongs to.
    pub process: usize,
    pub name: String,
}

impl Context {
    /// Something that others may get ahead of.
    pub fn call<T>(&self, event: impl FnOnce(&mut World) -> T) -> T {
        self.turn.wait();
        event(&mut self.world.lock())
    }

    /// Something within the turn that is held.
    pub fn peek<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.lock())
    }

    pub fn tell(&self, what: String, person: Option<usize>) {
        self.world.lock().tell(&self.name, what, person);
    }

    fn wait_some(&self, most: u64) {
        for _ in 0..self.peek(|world| world.random.below(most)) {
            self.turn.wait();
        }
    }
}

/// The fence's questions, asked as one group. Answers take their time on the way there and back.
pub struct Asker {
    pub context: Context,
    pub group: &'static str,
    /// The mutation that asks too early puts its answer here.
    pub asked_early: Rc<std::cell::RefCell<Option<Offsets>>>,
}

impl Logs for Asker {
    fn partitions(&self, topic: &str) -> Result<Option<u32>, EdgeError> {
        self.context.call(|world| world.partitions(topic))
    }

    fn ends(&self, topic: &str, partitions: u32) -> Result<Offsets, Unknown> {
        if let Some(ends) = self.asked_early.borrow_mut().take()
            && topic == super::world::OPT_OUTS
        {
            return Ok(ends);
        }
        let answer = self.context.call(|world| world.ends(topic, partitions));
        self.context.wait_some(12);
        answer
    }

    fn committed(&self, topic: &str, partitions: u32) -> Result<Vec<Option<u64>>, Unknown> {
        self.context.wait_some(8);
        self.context.call(|world| world.committed(self.group, topic, partitions))
    }
}
