//! What networks do: delays, connections that are cut in the middle of anything, and silence for longer than a session. Each input has
//! one outcome all the same, each opt-out one confirmation, and nothing leaks.
//!
//! Eight cuts; `STOPGATE_LONG=1` makes it forty.

use std::time::Duration;

use super::kafka_exactly_once::survives;
use super::kafka_torture::{assert_kept, is_long};
use crate::support::broker::{Broker, Options};
use crate::support::proxy::{Kind, Proxy};
use crate::support::world::{Layout, World};

/// A session that silence can outlast, and clients that notice it.
const IMPATIENT: &str = "[kafka]\n\"session.timeout.ms\" = \"3000\"\n\"heartbeat.interval.ms\" = \"500\"\n\"socket.timeout.ms\" = \"10000\"\n";

/// A broker whose second listener is told to clients as the proxy's address.
pub fn behind_a_proxy() -> Option<(Broker, Proxy)> {
    let (listener, port) = Proxy::listen();
    let properties = [
        ("listeners", "PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{second},CONTROLLER://127.0.0.1:{controller}".to_owned()),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{{port}},PROXIED://127.0.0.1:{port}")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT".into()),
        ("inter.broker.listener.name", "PLAINTEXT".into()),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value)).into();
    let broker = Broker::start(&Options { properties, ..Options::default() })?;
    let proxy = Proxy::lead_to(listener, broker.second_port());
    Some((broker, proxy))
}

#[test]
fn a_bad_network_loses_doubles_and_leaks_nothing() {
    let Some((broker, proxy)) = behind_a_proxy() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(&broker, "network", layout).tables(IMPATIENT).through(&proxy.address());
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    let cuts = if is_long() { 40 } else { 8 };
    let stoppers = 150 + 10 * cuts;
    survives(&world, stoppers, |more| {
        let (mut a, mut b) = (serving("a").spawn(), serving("b").spawn());
        a.ready();
        b.ready();
        more(300);
        proxy.delay(Duration::from_millis(30));
        more(200);
        proxy.delay(Duration::ZERO);
        for cut in 0..cuts {
            proxy.cut();
            std::thread::sleep(Duration::from_millis(37 * cut as u64 % 400));
            more(50);
        }
        // Silence: sessions end, transactions too, and in doubt everything waits.
        proxy.swallow(true);
        std::thread::sleep(Duration::from_secs(2));
        let decided = || world.kafka.read_committed(&world.names.allowed).len() + world.kafka.read_committed(&world.names.suppressed).len();
        let before = decided();
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(decided(), before, "nothing is decided while nobody answers");
        proxy.swallow(false);
        more(300);
        a.still_runs();
        b.still_runs();
        a.terminate();
        b
    });
    assert_kept(&world, stoppers);
}

/// See `kafka_group`: the client itself comes back as another member and keeps its partitions, here in the middle of a commit.
#[test]
fn a_member_that_joins_again_too_late_while_it_commits_doubles_nothing() {
    let Some((broker, proxy)) = behind_a_proxy() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(&broker, "late", layout).tables(IMPATIENT);
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    survives(&world, 200, |more| {
        let (mut late, mut other) = (serving("late").arg("--bootstrap", &proxy.address()).spawn(), serving("other").spawn());
        late.ready();
        other.ready();
        more(1_000);
        for _ in 0..2 {
            // The late one has decided and waits for its records to be acknowledged. Another one comes, which makes all join
            // again, and in time they go on without the late one.
            proxy.hold(&[Kind::JoinGroup, Kind::Produce]);
            let third = serving("third").spawn();
            std::thread::sleep(Duration::from_secs(5));
            more(1_000);
            proxy.hold(&[Kind::Produce]);
            std::thread::sleep(Duration::from_millis(1_500));
            proxy.hold(&[]);
            more(1_000);
            third.terminate();
            std::thread::sleep(Duration::from_secs(4));
            more(1_000);
        }
        late.still_runs();
        late.terminate();
        other
    });
    assert_kept(&world, 200);
}
