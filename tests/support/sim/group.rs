//! A consumer group's coordinator: static members, cooperative rebalances, members that are taken for dead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use stopgate::record::{Rebalance, TopicPartition};

#[derive(Debug, Default)]
struct Member {
    /// Counts joins under this name: an older one is fenced.
    incarnation: u64,
    /// What the coordinator believes it to own.
    owned: BTreeSet<TopicPartition>,
    revoking: BTreeSet<TopicPartition>,
    asks: VecDeque<Rebalance>,
}

#[derive(Debug, Default)]
pub struct Group {
    members: BTreeMap<String, Member>,
    partitions: Vec<TopicPartition>,
    committed: BTreeMap<TopicPartition, u64>,
    joins: u64,
}

/// How the coordinator sees whoever claims to be a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// It was silent for a session: its partitions are somebody else's.
    Expelled,
    /// Another process joined under its name.
    Replaced,
}

impl Group {
    /// Topics may have gained partitions.
    pub fn set_partitions(&mut self, partitions: Vec<TopicPartition>) {
        self.partitions = partitions;
        self.rebalance();
    }

    /// Joins under a stable name; who held the name before keeps nothing. Returns the incarnation.
    pub fn join(&mut self, name: &str) -> u64 {
        self.joins += 1;
        let member = self.members.entry(name.to_owned()).or_default();
        member.incarnation = self.joins;
        member.revoking.clear();
        member.asks.clear();
        if !member.owned.is_empty() {
            member.asks.push_back(Rebalance::Take(member.owned.iter().cloned().collect()));
        }
        self.rebalance();
        self.joins
    }

    /// A member was silent for a session.
    pub fn expel(&mut self, name: &str) {
        self.members.remove(name);
        self.rebalance();
    }

    pub fn standing(&self, name: &str, incarnation: u64) -> Standing {
        match self.members.get(name) {
            None => Standing::Expelled,
            Some(member) if member.incarnation == incarnation => Standing::Member,
            Some(_) => Standing::Replaced,
        }
    }

    pub fn asks(&mut self, name: &str) -> VecDeque<Rebalance> {
        self.members.get_mut(name).map(|member| std::mem::take(&mut member.asks)).unwrap_or_default()
    }

    /// A member has given partitions back.
    pub fn gave(&mut self, name: &str, partitions: &[TopicPartition]) {
        if let Some(member) = self.members.get_mut(name) {
            for partition in partitions {
                member.owned.remove(partition);
                member.revoking.remove(partition);
            }
        }
        self.rebalance();
    }

    /// Sticky: who owns a partition keeps it unless it owns more than its share.
    fn rebalance(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let share = self.partitions.len().div_ceil(self.members.len());
        for member in self.members.values_mut() {
            let surplus: Vec<TopicPartition> =
                member.owned.iter().filter(|partition| !member.revoking.contains(*partition)).skip(share).cloned().collect();
            if !surplus.is_empty() {
                member.revoking.extend(surplus.iter().cloned());
                member.asks.push_back(Rebalance::Give(surplus));
            }
        }
        let owned: BTreeSet<&TopicPartition> = self.members.values().flat_map(|member| &member.owned).collect();
        let free: Vec<TopicPartition> = self.partitions.iter().filter(|partition| !owned.contains(partition)).cloned().collect();
        for partition in free {
            let member = self.members.values_mut().min_by_key(|member| member.owned.len()).expect("some member");
            member.owned.insert(partition.clone());
            member.asks.push_back(Rebalance::Take(vec![partition]));
        }
    }

    pub fn committed(&self, partition: &TopicPartition) -> Option<u64> {
        self.committed.get(partition).copied()
    }

    pub fn commit(&mut self, positions: &BTreeMap<TopicPartition, u64>) {
        self.committed.extend(positions.iter().map(|(partition, position)| (partition.clone(), *position)));
    }
}
