//! Three brokers: leaders move, brokers are restarted one after the other under load, one is killed. Each input has one outcome, each
//! opt-out one confirmation, and nothing leaks.
//!
//! One round of restarts; `STOPGATE_LONG=1` makes it five.

use super::kafka_exactly_once::survives;
use super::kafka_torture::{assert_kept, is_long};
use crate::support::broker::Broker;
use crate::support::world::{Layout, World};

#[test]
fn a_rolling_restart_and_a_killed_broker_of_three_lose_double_and_leak_nothing() {
    let Some(brokers) = Broker::start_cluster() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(&brokers[0], "cluster", layout);
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    let rounds = if is_long() { 5 } else { 1 };
    let stoppers = 200 * rounds;
    survives(&world, stoppers, |more| {
        let (mut a, mut b) = (serving("a").spawn(), serving("b").spawn());
        a.ready();
        b.ready();
        more(300);
        for _ in 0..rounds {
            for broker in &brokers {
                broker.shut_down();
                more(100);
                broker.restart();
                more(100);
            }
            brokers[1].kill();
            more(100);
            brokers[1].restart();
            more(200);
        }
        a.still_runs();
        b.still_runs();
        a.terminate();
        b
    });
    assert_kept(&world, stoppers);
}
