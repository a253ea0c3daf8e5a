//! A world in one process: production's state machine, stages, fence, view and wire bytes on logs in memory, in an
//! order that follows from a seed.
//!
//! Two filters and two detects, each with an applying thread and a worker, are real threads of which one runs at a
//! time ([`turn`]). Before every call to the brokers another one may be chosen: an applier, a person, a third party, a
//! fault. What the brokers do is in [`log`], [`group`] and [`world`]; what must hold is in [`check`], judged by an account
//! of consent of its own ([`person`]). The threads' own code is the program's, but for [`driver`], [`stages`] and
//! [`follower`], which stand for the thin `run` side and are written after it line by line.

mod check;
mod client;
mod context;
mod driver;
mod follower;
mod group;
mod log;
mod person;
mod stages;
mod turn;
mod workload;
mod world;

use check::Violation;
use context::{Asker, Context};
use follower::Follower;
use parking_lot::Mutex;
use stages::{DetectStage, FilterStage, Sight};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use stopgate::domain::business::Businesses;
use stopgate::domain::classify::Lexicon;
use stopgate::domain::key::Channel;
use stopgate::domain::send::Categories;
use stopgate::domain::suppression::PrintKey;
use stopgate::metrics::Metrics;
use stopgate::run::fence::Fence;
use stopgate::run::view::SharedView;
use stopgate::stage::detect::{DetectRules, Detector, Excerpt, Overlay, Policy};
use stopgate::stage::filter::{Filter, FilterRules};
use stopgate::stage::worker::{Fencing, Pace};
use stopgate::wire::inbound::{Format, InboundFormat};
use turn::{Actor, Turn};
use workload::Outside;
use world::{DETECT_GROUP, FILTER_GROUP, INBOUND, OPT_OUTS, World};

/// What goes wrong in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process dies wherever it stands; its successor starts later.
    Crashes,
    /// A process stands still for longer than a session and wakes up again.
    Zombies,
    /// A process stands still while another one starts under its name.
    Replacements,
    LostAnswers,
    Refusals,
    UnknownCommits,
    BrokerRestarts,
    ThirdParties,
    HangingTransactions,
    OutOfOrder,
    Duplicates,
    Compaction,
    TopicMadeAnew,
    PartitionsAdded,
    Poison,
    /// A process's clock jumps by up to a day, forwards or back.
    ClockJumps,
}

impl Fault {
    pub const ALL: [Self; 16] = [
        Self::Crashes,
        Self::Zombies,
        Self::Replacements,
        Self::LostAnswers,
        Self::Refusals,
        Self::UnknownCommits,
        Self::BrokerRestarts,
        Self::ThirdParties,
        Self::HangingTransactions,
        Self::OutOfOrder,
        Self::Duplicates,
        Self::Compaction,
        Self::TopicMadeAnew,
        Self::PartitionsAdded,
        Self::Poison,
        Self::ClockJumps,
    ];
}

/// A choice of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults(u32);

impl Faults {
    pub fn all() -> Self {
        Self((1 << Fault::ALL.len()) - 1)
    }

    pub fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u32) != 0
    }

    fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u32))
    }

    fn shown(self) -> String {
        let names: Vec<String> = Fault::ALL.into_iter().filter(|fault| self.has(*fault)).map(|fault| format!("{fault:?}")).collect();
        names.join(", ")
    }
}

/// A promise broken on purpose, by another wiring of this world; the program under test is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    EndsBeforeBatch,
    ReceivedAfterQuestion,
    PublishedBeforeInsert,
    OverlayDropped,
    AppliedWithinLookUps,
    OffsetsOutside,
    CommittedBeforeAcks,
    OwnWriteNotRecognised,
    ZombieNotFenced,
    HealSkipped,
}

/// Which stage a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Detect,
    Filter,
}

struct Process {
    role: Role,
    number: usize,
    actors: Vec<Actor>,
    asleep_until: u64,
    /// A successor has its name.
    replaced: bool,
    id: usize,
}

/// How long a world lives under faults, and how long it may take to come to rest after them.
pub const STEPS: u64 = 2_200;
const REST_STEPS: u64 = 12_000;
/// How many sends are tried on a spoilt topic, and for how long.
const SPOILT_SENDS: usize = 10;
const SPOILT_STEPS: u64 = 120;
/// How many threads get a turn within a step.
const TURNS: usize = 3;

static LEXICON: LazyLock<Arc<Lexicon>> = LazyLock::new(|| Arc::new(stopgate::wire::lexicon::builtin()));
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Arc::new(Metrics::new()));

/// A failed run, ready to be read.
pub struct Failure {
    pub seed: u64,
    pub violation: Violation,
    faults: Faults,
    history: Vec<(u64, String, Option<usize>)>,
}

/// How many lines are shown where nobody is concerned; else, around how many of the last that concern a person what
/// others did is shown, and how many steps around.
const SHOWN: usize = 120;
const NEAR: usize = 8;
const NEAR_STEPS: u64 = 25;

impl Failure {
    /// The history: all that concerns the person whose promise is broken and what happened around the last of it, or
    /// the end where it concerns nobody.
    pub fn told(&self) -> String {
        let of_person = |person: &Option<usize>| person.is_some() && *person == self.violation.person;
        let near: Vec<u64> = self.history.iter().rev().filter(|(_, _, person)| of_person(person)).map(|(step, _, _)| *step).take(NEAR).collect();
        let from = self.history.len().saturating_sub(SHOWN);
        let lines = self.history.iter().enumerate().filter(|(number, (step, _, person))| match self.violation.person {
            Some(_) => of_person(person) || (person.is_none() && near.iter().any(|near| near.abs_diff(*step) < NEAR_STEPS)),
            None => *number >= from,
        });
        let mut told = format!("seed {}: {} is broken: {}\n", self.seed, self.violation.invariant, self.violation.what);
        let written = writeln!(told, "these faults are enough: {}", self.faults.shown())
            .and_then(|()| writeln!(told, "replay: STOPGATE_SIM_SEED={} cargo test --test integration simulation", self.seed))
            .and_then(|()| lines.into_iter().try_for_each(|(_, (step, what, _))| writeln!(told, "{step:>6} {what}")));
        written.expect("writing to a string");
        told
    }
}

/// Runs one world; a failure is made small: every fault is left out without which the same promise breaks.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Result<BTreeMap<&'static str, u64>, Box<Failure>> {
    let failure = match run_with(seed, mutation, Faults::all()) {
        Ok(counts) => return Ok(counts),
        Err(failure) => failure,
    };
    let mut smallest = failure;
    for fault in Fault::ALL {
        if smallest.faults.has(fault)
            && let Err(smaller) = run_with(seed, mutation, smallest.faults.without(fault))
            && smaller.violation.invariant == smallest.violation.invariant
        {
            smallest = smaller;
        }
    }
    Err(smallest)
}

/// Runs one world as it is.
pub fn run_with(seed: u64, mutation: Option<Mutation>, faults: Faults) -> Result<BTreeMap<&'static str, u64>, Box<Failure>> {
    let mut simulation = Simulation::new(seed, mutation, faults);
    simulation.live();
    let mut world = simulation.world.lock();
    let history = std::mem::take(&mut world.history);
    match world.violation.take() {
        Some(violation) => Err(Box::new(Failure { seed, violation, faults, history })),
        None => Ok(std::mem::take(&mut world.counts)),
    }
}

struct Simulation {
    world: Arc<Mutex<World>>,
    processes: Vec<Process>,
    /// Who starts again, and when.
    starts: Vec<(u64, Role, usize)>,
    outside: Outside,
    inbound_level: bool,
    next_id: usize,
}

impl Simulation {
    fn new(seed: u64, mutation: Option<Mutation>, faults: Faults) -> Self {
        let mut world = World::new(seed, mutation, faults);
        let inbound_level = world.random.one_in(3);
        world.judge.inbound_level = inbound_level;
        let world = Arc::new(Mutex::new(world));
        let mut simulation = Self { world, processes: Vec::new(), starts: Vec::new(), outside: Outside::default(), inbound_level, next_id: 0 };
        for number in 0..2 {
            simulation.start(Role::Detect, number);
            simulation.start(Role::Filter, number);
        }
        simulation
    }

    fn live(&mut self) {
        for step in 0..STEPS {
            if self.step(step, true) {
                return;
            }
        }
        self.come_to_rest();
        for step in STEPS..STEPS + REST_STEPS {
            if self.step(step, false) {
                return;
            }
            if step % 16 == 0 && self.world.lock().unfinished().is_empty() {
                self.world.lock().judge_end();
                return self.spoil(step);
            }
        }
        let mut world = self.world.lock();
        let what = world.unfinished();
        world.violate("I7", format!("the world does not come to rest: {what}"), None);
    }

    /// Once all is at rest: a partition more on opt-outs, or a key that nobody can read. Sends wait from then on.
    fn spoil(&mut self, from: u64) {
        let allowed = {
            let mut world = self.world.lock();
            workload::spoil(&mut world);
            (0..SPOILT_SENDS).for_each(|_| workload::send(&mut world));
            world.counts.get("allowed").copied()
        };
        for step in from..from + SPOILT_STEPS {
            if self.step(step, false) {
                return;
            }
        }
        let mut world = self.world.lock();
        if world.counts.get("allowed").copied() != allowed {
            world.violate("P3", "a send was allowed that had to wait".to_owned(), None);
        }
    }

    /// One event. Whether a promise is broken.
    fn step(&mut self, step: u64, troubled: bool) -> bool {
        {
            let mut world = self.world.lock();
            world.step = step;
            world.time_out();
        }
        self.start_due(step);
        let chosen = self.world.lock().random.below(100);
        match chosen {
            0..=11 if troubled => self.outside.act(&mut self.world.lock()),
            12..=15 if troubled => self.fault(),
            _ => (0..TURNS).for_each(|_| self.turn(step)),
        }
        self.world.lock().violation.is_some()
    }

    fn turn(&mut self, step: u64) {
        let awake: Vec<usize> = (0..self.processes.len()).filter(|at| self.processes[*at].asleep_until <= step).collect();
        if awake.is_empty() {
            return;
        }
        let (process, actor) = {
            let mut world = self.world.lock();
            (world.random.pick(&awake), world.random.below(2) as usize)
        };
        let process = &mut self.processes[process];
        if let Err(panicked) = process.actors[actor].run() {
            self.world.lock().violate("P5", format!("a thread panicked: {panicked}"), None);
        }
        // Another process has taken the name of this one's worker: it ends.
        if process.actors[1].ended {
            let (id, role, number) = (process.id, process.role, process.number);
            self.processes.retain(|process| process.id != id);
            self.world.lock().unaware.remove(&id);
            self.start_where_missing(role, number, step);
        }
    }

    /// A name that no process has, and none is about to have, is started again.
    fn start_where_missing(&mut self, role: Role, number: usize, at: u64) {
        let runs = self.processes.iter().any(|process| (process.role, process.number) == (role, number));
        let will = self.starts.iter().any(|(_, to_start, which)| (*to_start, *which) == (role, number));
        if !runs && !will {
            self.starts.push((at, role, number));
        }
    }

    fn start_due(&mut self, step: u64) {
        let due: Vec<(u64, Role, usize)> = self.starts.extract_if(.., |(at, _, _)| *at <= step).collect();
        for (_, role, number) in due {
            self.start(role, number);
        }
    }

    fn fault(&mut self) {
        let chosen = self.world.lock().random.below(16);
        match chosen {
            0..=2 => self.crash(),
            3..=4 => self.put_to_sleep(Fault::Zombies),
            5 => self.put_to_sleep(Fault::Replacements),
            6 => {
                let mut world = self.world.lock();
                if world.strikes(Fault::BrokerRestarts, 3) {
                    world.down_until = world.step + 5 + world.random.below(40);
                    let what = format!("is away until step {}", world.down_until);
                    world.tell("broker", what, None);
                }
            }
            7..=8 => {
                let mut world = self.world.lock();
                match world.random.below(2) {
                    0 => self.outside.heal(&mut world),
                    _ if world.strikes(Fault::Compaction, 1) => self.outside.compact(&mut world),
                    _ => {}
                }
            }
            9 => self.recreate(),
            10 => {
                let mut world = self.world.lock();
                if world.strikes(Fault::PartitionsAdded, 8) && world.log.partitions(INBOUND) < 4 {
                    world.log.add_partition(INBOUND);
                    world.share_out(INBOUND, DETECT_GROUP);
                    world.tell("operator", format!("adds a partition to {INBOUND}"), None);
                }
            }
            _ => {
                let mut world = self.world.lock();
                let producers: Vec<u64> = world.in_flight.keys().copied().collect();
                if !producers.is_empty() {
                    let producer = world.random.pick(&producers);
                    world.deliver(producer);
                }
            }
        }
    }

    fn crash(&mut self) {
        let mut world = self.world.lock();
        if self.processes.is_empty() || !world.strikes(Fault::Crashes, 2) {
            return;
        }
        let at = world.random.below(self.processes.len() as u64) as usize;
        let back = world.step + world.random.below(60);
        drop(world);
        let mut process = self.processes.remove(at);
        process.actors.iter_mut().for_each(Actor::crash);
        let mut world = self.world.lock();
        world.tell("fault", format!("{} dies", name(process.role, process.number)), None);
        world.unaware.remove(&process.id);
        world.count("crashes");
        if world.random.one_in(2) {
            // It stays away for longer than a session.
            world.group(group_of(process.role)).expel(&name(process.role, process.number));
        }
        drop(world);
        self.start_where_missing(process.role, process.number, back);
    }

    fn put_to_sleep(&mut self, fault: Fault) {
        let mut world = self.world.lock();
        let awake: Vec<usize> =
            (0..self.processes.len()).filter(|at| self.processes[*at].asleep_until <= world.step && !self.processes[*at].replaced).collect();
        if awake.is_empty() || !world.strikes(fault, 2) {
            return;
        }
        let at = world.random.pick(&awake);
        let process = &mut self.processes[at];
        process.asleep_until = world.step + 20 + world.random.below(200);
        let (role, number) = (process.role, process.number);
        world.tell("fault", format!("{} stands still until {}", name(role, number), process.asleep_until), None);
        if fault == Fault::Replacements {
            process.replaced = true;
            self.starts.push((world.step + world.random.below(10), role, number));
        } else {
            world.group(group_of(role)).expel(&name(role, number));
        }
    }

    fn recreate(&mut self) {
        let mut world = self.world.lock();
        let all_awake = self.processes.iter().all(|process| process.asleep_until <= world.step);
        if all_awake && world.unaware.is_empty() && world.strikes(Fault::TopicMadeAnew, 3) {
            let before = world.log.topic(OPT_OUTS).id;
            workload::recreate(&mut world);
            if world.log.topic(OPT_OUTS).id != before {
                world.unaware = self.processes.iter().map(|process| process.id).collect();
            }
        }
    }

    /// Faults end, and everybody is there again.
    fn come_to_rest(&mut self) {
        let mut world = self.world.lock();
        self.outside.end_all(&mut world);
        world.faults = Faults(0);
        world.down_until = 0;
        world.tell("world", "comes to rest".to_owned(), None);
        let step = world.step;
        self.processes.iter_mut().for_each(|process| process.asleep_until = 0);
        self.starts.iter_mut().for_each(|(at, _, _)| *at = step);
    }

    fn start(&mut self, role: Role, number: usize) {
        self.next_id += 1;
        let id = self.next_id;
        let view = Arc::new(SharedView::new(PrintKey::new(id as u64, 7)));
        let context = {
            let (world, name) = (self.world.clone(), format!("{}#{id}", name(role, number)));
            move |turn: Turn| Context { world, turn: Rc::new(turn), process: id, name }
        };
        let applier = Actor::start({
            let (context, view) = (context.clone(), view.clone());
            move |turn| Follower { context: context(turn), view, role }.run()
        });
        let inbound_level = self.inbound_level && role == Role::Filter;
        let worker = Actor::start(move |turn| work(context(turn), view, role, number, inbound_level));
        self.processes.push(Process { role, number, actors: vec![applier, worker], asleep_until: 0, replaced: false, id });
        self.world.lock().tell("world", format!("{}#{id} starts", name(role, number)), None);
    }
}

fn name(role: Role, number: usize) -> String {
    match role {
        Role::Detect => format!("detect-{number}"),
        Role::Filter => format!("filter-{number}"),
    }
}

fn group_of(role: Role) -> &'static str {
    match role {
        Role::Detect => DETECT_GROUP,
        Role::Filter => FILTER_GROUP,
    }
}

/// A worker of a process, from its start to its death.
fn work(context: Context, view: Arc<SharedView>, role: Role, number: usize, inbound_level: bool) {
    let group = group_of(role);
    let asked_early = Rc::new(RefCell::new(None));
    let asker = |group| Asker { context: context.clone(), group, asked_early: asked_early.clone() };
    let inbound = inbound_level.then(|| (asker(DETECT_GROUP), vec![INBOUND.into()]));
    let fence = Fence::over(asker(group), OPT_OUTS.into(), inbound, view.clone(), METRICS.clone());
    let prints = view.print_key();
    let sight = Sight { context: context.clone(), fence, view, asked_early, passed: None };
    let pace = Pace {
        fencing: match role {
            Role::Detect => Fencing::AfterChange,
            Role::Filter => Fencing::EveryBatch,
        },
        commits_idle_positions: role == Role::Detect,
        transaction_ms: 60,
        fence_patience_ms: 40,
        hold_retry_ms: 20,
        idle_wait_ms: 5,
    };
    match role {
        Role::Detect => {
            let consents = context.peek(World::new_consent_producer);
            let stage = DetectStage { sight, detector: Detector::new(detect_rules()), overlay: Overlay::default(), consents, outstanding: 0 };
            driver::Driver::run(context, group, &name(role, number), pace, stage);
        }
        Role::Filter => {
            let rules = FilterRules {
                topics: stages::sends_topics(),
                businesses: Arc::new(Businesses::default()),
                categories: Categories::new(["utility".to_owned()], BTreeMap::new()),
                default_channel: Channel::Whatsapp,
                book: Arc::default(),
                guidance: None,
            };
            let stage = FilterStage { sight, filter: Filter::new(rules, prints) };
            driver::Driver::run(context, group, &name(role, number), pace, stage);
        }
    }
}

fn detect_rules() -> DetectRules {
    DetectRules {
        hashed: None,
        lexicon: LEXICON.clone(),
        lexicons: BTreeMap::new(),
        businesses: Arc::new(Businesses::default()),
        formats: vec![(INBOUND.into(), InboundFormat { format: Format::Json, default_channel: Channel::Whatsapp })],
        book: Arc::new(stopgate::wire::rules::built_in()),
        policy: Policy {
            cross_channel: false,
            confirmations: true,
            review_suppresses: true,
            excerpt: Excerpt::None,
            review_deadline_ms: 1000,
            texts: Default::default(),
            feedback: None,
            clarification_ms: None,
            programs: Vec::new(),
        },
        policies: BTreeMap::new(),
        rules_version: "r1".to_owned(),
    }
}
