//! The worst moment: an opt-out is acknowledged, and at once a send to that person is produced. Under load, many at a time.
//!
//! 2,000 pairs at each level; `STOPGATE_LONG=1` makes it 100,000. That the check can fail is shown by the last test, which puts
//! the filter together without its fence.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use stopgate::config::{Config, Overrides, Verb};
use stopgate::domain::suppression::PrintKey;
use stopgate::metrics::Metrics;
use stopgate::run::filter::FilterStage;
use stopgate::run::follow::Follow;
use stopgate::run::gathering::Gathering;
use stopgate::run::layout::{Brokers, Layout};
use stopgate::run::status::Status;
use stopgate::run::stop::Stop;
use stopgate::run::view::SharedView;
use stopgate::run::worker::Setup;
use stopgate::stage::worker::{Fencing, Pace};

use super::kafka_exactly_once::EndOnDrop;
use crate::support::broker::Broker;
use crate::support::kafka::{Producer, Received};
use crate::support::records::OPTED_OUT;
use crate::support::wait::{DEADLINE, wait_until};
use crate::support::world::{World, id_of, message, now_ms, phone, send};

const PAIRS: usize = 2_000;
const LONG_PAIRS: usize = 100_000;
const IN_FLIGHT: usize = 64;
const PRODUCERS: usize = 16;
/// Persons of the load, who never opt out.
const OTHERS: usize = 5_000_000;

/// One at a time: each keeps all processors busy.
static ALONE: Mutex<()> = Mutex::new(());

/// Makes pairs while other sends keep the filter busy; how many leaked. `stop` returns once the opt-out of person `n` is
/// acknowledged.
fn leaks(world: &World, stop: impl Fn(&Producer, usize) + Sync) -> usize {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pairs = if std::env::var_os("STOPGATE_LONG").is_some() { LONG_PAIRS } else { PAIRS };
    let producers: Vec<Producer> = (0..PRODUCERS).map(|_| world.kafka.producer()).collect();
    let outcomes = world.outcomes();
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = std::thread::scope(|scope| {
        let under_way = EndOnDrop(&done);
        let load = scope.spawn(|| {
            let producer = world.kafka.producer();
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                let sends = (sent..sent + 500).map(|n| send(&format!("load-{n}"), &phone(OTHERS + n), "marketing"));
                producer.send_all(&world.names.sends, sends);
                sent += 500;
                // Enough to keep the filter busy, and no more than the test itself can read.
                std::thread::sleep(Duration::from_millis(10));
            }
            sent
        });
        let workers: Vec<_> = (0..IN_FLIGHT)
            .map(|worker| {
                let (producer, next, stop) = (&producers[worker % PRODUCERS], &next, &stop);
                scope.spawn(move || {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= pairs {
                            return;
                        }
                        stop(producer, n);
                        producer.send(&world.names.sends, send(&format!("pair-{n}"), &phone(n), "marketing"));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("a pair was made");
        }
        drop(under_way);
        load.join().expect("the load went on")
    });
    let patience = Duration::from_secs(150 + pairs as u64 / 100);
    wait_until("every send has its outcome", patience, || outcomes.count() >= pairs + load);
    let (allowed, suppressed) = (outcomes.allowed.seen(), outcomes.suppressed.seen());
    let of_pairs =
        |records: &[Received]| -> BTreeSet<String> { records.iter().filter_map(id_of).filter(|id| id.starts_with("pair-")).collect() };
    let leaked = of_pairs(&allowed);
    println!("{pairs} pairs among {load} other sends: {} leaked", leaked.len());
    assert_eq!(leaked.len() + of_pairs(&suppressed).len(), pairs, "every send of a pair has one outcome");
    leaked.len()
}

/// The opt-out is written to `opt-outs` by somebody else.
fn opts_out(world: &World) -> impl Fn(&Producer, usize) + Sync {
    |producer, n| {
        producer.send(&world.names.opt_outs, world.consent_record(&format!("phone:{}", phone(n)), "marketing", OPTED_OUT, now_ms()));
    }
}

#[test]
fn no_send_produced_right_after_an_acknowledged_opt_out_passes() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fresh-opt-outs");
    let mut service = world.serving("filter", "a").arg("--fence", "opt-outs").spawn();
    service.ready();
    assert_eq!(leaks(&world, opts_out(&world)), 0);
}

#[test]
fn no_send_produced_right_after_an_acknowledged_stop_passes_at_level_inbound() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fresh-inbound");
    let mut service = world.serving("run", "a").arg("--fence", "inbound").spawn();
    service.ready();
    let stop = |producer: &Producer, n: usize| {
        producer.send(&world.names.inbound, message(&phone(n), "STOP", now_ms()));
    };
    assert_eq!(leaks(&world, stop), 0);
}

/// The filter's own parts, put together as the service does, but for the fence. Its view is in no hurry: brokers gather what it
/// reads for up to two seconds, as an operator may wish. (Else few leak, and with bad luck none: 1 to 5 of 2,000.)
fn filter_without_fence(world: &World) -> (Stop, Vec<JoinHandle<()>>) {
    let overrides = Overrides {
        bootstrap: Some(world.bootstrap().to_owned()),
        instance: Some(format!("{}-unfenced", world.names.filter_group)),
        http: Some("off".to_owned()),
        ..Overrides::default()
    };
    let raw = stopgate::config::parse(&world.config(), "test").expect("a configuration").overridden(overrides);
    let config = Arc::new(raw.check(Verb::Filter, "host").expect("a configuration"));
    let (status, stop, metrics) = (Arc::new(Status::new(&[])), Stop::default(), Arc::new(Metrics::new()));
    let layout = Layout::wait(&config, Verb::Filter, Brokers::Real, &status, &stop).expect("topics").expect("topics");
    let (layout, view) = (Arc::new(layout), Arc::new(SharedView::new(PrintKey::new(1, 2))));
    let mut of_view = Config::clone(&config);
    let gathered = [("fetch.min.bytes", "1000000"), ("fetch.wait.max.ms", "2000")];
    of_view.connection.settings.extend(gathered.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let follow = Follow {
        config: Arc::new(of_view),
        brokers: Brokers::Real,
        layout: layout.clone(),
        kept: None,
        view: view.clone(),
        status: status.clone(),
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let following = std::thread::spawn(move || follow.run().expect("followed"));
    wait_until("the view is restored", DEADLINE, || metrics.restored.get() == 1);
    let setup = Setup {
        connection: config.connection.clone(),
        group: config.filter_group.clone(),
        member: config.instance.clone(),
        topics: config.sends.iter().map(|sends| sends.input.name.clone()).collect(),
        gathering: Arc::new(Gathering::of(1)),
        pace: Pace {
            fencing: Fencing::Never,
            commits_idle_positions: false,
            transaction_ms: 100,
            fence_patience_ms: 2000,
            hold_retry_ms: 200,
            idle_wait_ms: 50,
        },
        limits: layout.limits(),
        status,
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let stage = FilterStage::new(config, layout, view, None, String::new(), metrics, None);
    let filtering = std::thread::spawn(move || setup.run(stage).expect("filtered"));
    (stop, vec![following, filtering])
}

#[test]
fn without_its_fence_the_filter_lets_sends_pass_right_after_an_acknowledged_opt_out() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fresh-unfenced");
    let (stop, threads) = filter_without_fence(&world);
    let leaked = leaks(&world, opts_out(&world));
    stop.ask();
    threads.into_iter().for_each(|thread| thread.join().expect("ended"));
    assert!(leaked > 0, "nothing leaked: the pairs above prove nothing");
}
