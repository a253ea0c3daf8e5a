//! The applying thread: restores the view, follows the log, publishes how far it has come.

use super::context::Context;
use super::log::Record;
use super::world::OPT_OUTS;
use super::{Mutation, Role};
use prost::Message as _;
use std::sync::Arc;
use stopgate::domain::business::Businesses;
use stopgate::domain::consent::Position;
use stopgate::run::view::SharedView;
use stopgate::stage::apply::{Effect, Written, apply};
use stopgate::wire::proto;

pub struct Follower {
    pub context: Context,
    pub view: Arc<SharedView>,
    pub role: Role,
}

impl Follower {
    /// Until the process ends.
    pub fn run(self) {
        let mut known = None;
        loop {
            let (id, partitions) = self.context.call(|world| (world.log.topic(OPT_OUTS).id, world.log.partitions(OPT_OUTS)));
            if known.is_some_and(|known| known != partitions) {
                self.view.close(Some("the partition count of opt-outs changed"));
                continue;
            }
            known = Some(partitions);
            self.view.restart(partitions, "restoring");
            self.view.identify(&id.to_string());
            self.context.peek(|world| world.unaware.remove(&self.context.process));
            self.follow(id, partitions);
        }
    }

    /// Until the topic is not the one any more that was read.
    fn follow(&self, id: u64, partitions: u32) {
        let mut positions = vec![0; partitions as usize];
        let ends: Vec<u64> = self.context.peek(|world| world.log.topic(OPT_OUTS).partitions.iter().map(|partition| partition.end).collect());
        let mut restoring = true;
        let mut poisoned = false;
        loop {
            let read = self.context.call(|world| {
                let topic = world.log.topic(OPT_OUTS);
                if topic.id != id || topic.partitions.len() != partitions as usize {
                    return None;
                }
                let mut read = Vec::new();
                for partition in 0..partitions {
                    if world.random.one_in(3) {
                        continue;
                    }
                    let max = 1 + world.random.below(4) as usize;
                    read.push((partition, world.log.read(OPT_OUTS, partition, positions[partition as usize], max)));
                }
                Some(read)
            });
            let Some(read) = read else { return };
            for (partition, (_, position)) in &read {
                positions[*partition as usize] = *position;
            }
            let early = self.context.peek(|world| world.is(Mutation::PublishedBeforeInsert));
            if early {
                self.view.publish(&positions);
                self.context.turn.wait();
            }
            self.view.apply(|view| {
                for (partition, (records, _)) in &read {
                    for (offset, record) in records {
                        let at = Position { partition: *partition, offset: *offset };
                        let value = self.value_of(record);
                        let written =
                            Written { at, timestamp_ms: Some(record.timestamp_ms), key: record.key.as_deref(), value: value.as_deref() };
                        poisoned |= apply(view, &written, &Businesses::default()) == Effect::UnreadableKey;
                        view.advance(*partition, offset + 1);
                    }
                }
            });
            if poisoned {
                self.view.close(Some("poison"));
            }
            self.context.turn.wait();
            self.view.publish(&positions);
            restoring &= positions.iter().zip(&ends).any(|(at, end)| at < end);
            self.context.peek(|world| world.judge_view(&self.view.read(), id, restoring || poisoned));
            if !restoring && !poisoned {
                self.view.close(None);
            }
            if self.view.went_back() {
                return;
            }
        }
    }

    fn value_of(&self, record: &Record) -> Option<Vec<u8>> {
        let forgets = self.role == Role::Detect && self.context.peek(|world| world.is(Mutation::OwnWriteNotRecognised));
        let value = record.value.as_deref()?;
        match proto::ConsentRecord::decode(value) {
            Ok(mut consent) if forgets => {
                consent.evidence.get_or_insert_default().source = None;
                Some(consent.encode_to_vec())
            }
            Ok(_) | Err(_) => Some(value.to_vec()),
        }
    }
}
