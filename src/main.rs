//! The verbs: arguments, logging, configuration, the exit code.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong arguments or configuration.

use clap::{Args, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use stopgate::config::{self, Config, FenceLevel, LogFormat, Overrides, RawConfig, Verb};
use stopgate::run::layout::Brokers;
use stopgate::run::service::{self, Failure};
use stopgate::run::stop::Stop;
use stopgate::run::{classify, demo, topics, words};
use tracing_subscriber::EnvFilter;

/// Keeps marketing from people who said stop, on Kafka.
///
/// Stage 1 (detect) reads inbound messages and writes opt-outs to a compacted topic. Stage 2 (filter) holds that topic
/// in memory and lets through only the marketing sends that may go. Try `stopgate demo` first: it needs no broker.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show both stages at work on an embedded broker, with messages in six languages
    Demo,
    /// Run both stages in one process
    Run(ServiceArgs),
    /// Run stage 1: inbound messages → opt-outs
    Detect(ServiceArgs),
    /// Run stage 2: sends → sends.allowed, sends.suppressed
    Filter(ServiceArgs),
    /// Decide messages from standard input, one a line, as text or JSON, without a broker
    ///
    /// A line that starts with { is JSON {"id","text","button"?,"lang"?}; any other line is a text whose id is its number.
    /// Each is answered by one JSON line, in order: id, decision, rule, span, lang, scope.
    Classify(ClassifyArgs),
    /// Create the topics that are missing and print what differs; nothing that exists is changed
    Topics(ClusterArgs),
    /// Print the effective configuration, secrets redacted, and everything that is wrong with it or with the topics
    Check(ServiceArgs),
}

/// What every verb that talks to a broker takes.
#[derive(Args)]
struct ClusterArgs {
    /// Kafka brokers, separated by commas
    #[arg(long, env = "STOPGATE_BOOTSTRAP", value_name = "HOST:PORT")]
    bootstrap: Option<String>,
    /// Configuration file (TOML); flags and STOPGATE_… variables win over it
    #[arg(long, env = "STOPGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct ClassifyArgs {
    /// Directory of language files (*.toml) to use instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    lexicon: Option<PathBuf>,
    /// Add a field that says in a line why it was decided so
    #[arg(long)]
    explain: bool,
}

#[derive(Args)]
struct ServiceArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Worker threads of each stage [default: 1]
    #[arg(long, env = "STOPGATE_WORKERS", value_name = "N")]
    workers: Option<u32>,
    /// What a send waits for: all that is acknowledged on opt-outs, or also on the inbound topics [default: opt-outs]
    #[arg(long, env = "STOPGATE_FENCE", value_name = "LEVEL")]
    fence: Option<FenceLevel>,
    /// Address of probes and metrics, or off [default: 127.0.0.1:9470; detect: 9471]
    #[arg(long, env = "STOPGATE_HTTP", value_name = "ADDR:PORT|off")]
    http: Option<String>,
    /// Name of this instance, stable over restarts [default: HOST-PORT of the HTTP address]
    #[arg(long, env = "STOPGATE_INSTANCE", value_name = "NAME")]
    instance: Option<String>,
    /// Directory for what may be lost without harm [default: ./stopgate-state]
    #[arg(long, env = "STOPGATE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How the log on stderr is written [default: text]
    #[arg(long, env = "STOPGATE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl ServiceArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            bootstrap: self.cluster.bootstrap.clone(),
            instance: self.instance.clone(),
            workers: self.workers,
            fence: self.fence,
            http: self.http.clone(),
            state_dir: self.state_dir.clone(),
            log_format: self.log_format,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Command::Demo => demo::run(&mut std::io::stdout().lock()).map_err(|error| Failure::Failed(error.to_string())),
        Command::Run(args) => serve(&args, Verb::Run),
        Command::Detect(args) => serve(&args, Verb::Detect),
        Command::Filter(args) => serve(&args, Verb::Filter),
        Command::Classify(args) => classify_lines(&args),
        Command::Topics(args) => create_topics(&args),
        Command::Check(args) => check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = match failure {
                Failure::Refused(_) => 2,
                Failure::Failed(_) => 1,
            };
            // The last word of a process: where stderr is closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "stopgate: {failure}"));
            ExitCode::from(code)
        }
    }
}

fn read_file(path: Option<&PathBuf>) -> Result<RawConfig, Failure> {
    let Some(path) = path else { return Ok(RawConfig::default().with_environment(variables())) };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
    Ok(config::parse(&text, &name).map_err(refused)?.with_environment(variables()))
}

/// The environment as far as it is text: what is not can be no setting of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

fn host() -> String {
    hostname::get().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

fn configure(raw: RawConfig, overrides: Overrides, verb: Verb) -> Result<Config, Failure> {
    raw.overridden(overrides).check(verb, &host()).map_err(refused)
}

fn serve(args: &ServiceArgs, verb: Verb) -> Result<(), Failure> {
    let raw = read_file(args.cluster.config.as_ref())?;
    init_log(args.log_format.or(raw.log_format).unwrap_or_default());
    let config = configure(raw, args.overrides(), verb)?;
    let stop = Stop::default();
    stop_on_signals(&stop).map_err(failed)?;
    service::run(config, verb, Brokers::Real, &stop)
}

/// The first SIGTERM or SIGINT drains; a second one ends the process at once.
fn stop_on_signals(stop: &Stop) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut interrupt) = {
        let _entered = runtime.enter();
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            for asked_before in [false, true] {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if asked_before {
                    std::process::exit(130);
                }
                tracing::info!("stopping: what is decided is committed first");
                stop.ask();
            }
        });
    })?;
    Ok(())
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("STOPGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn classify_lines(args: &ClassifyArgs) -> Result<(), Failure> {
    let lexicon = words::load(args.lexicon.as_deref()).map_err(refused)?;
    let out = std::io::BufWriter::new(std::io::stdout().lock());
    match classify::run(&lexicon, args.explain, std::io::stdin().lock(), out) {
        Ok(classify::Outcome::AllRead) => Ok(()),
        Ok(classify::Outcome::SomeUnreadable) => Err(failed("some lines could not be read: their answers say why")),
        // The reader has seen enough, as `head` has: that is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn create_topics(args: &ClusterArgs) -> Result<(), Failure> {
    let overrides = Overrides { bootstrap: args.bootstrap.clone(), ..Overrides::default() };
    let config = configure(read_file(args.config.as_ref())?, overrides, Verb::Run)?;
    match topics::create(&config, &mut std::io::stdout().lock()).map_err(failed)? {
        true => Ok(()),
        false => Err(failed("some topics differ from what is wanted: see above")),
    }
}

fn check(args: &ServiceArgs) -> Result<(), Failure> {
    let raw = read_file(args.cluster.config.as_ref())?;
    let mut overrides = args.overrides();
    let has_broker = overrides.bootstrap.is_some() || raw.bootstrap.is_some();
    if !has_broker {
        overrides.bootstrap = Some("none".to_owned());
    }
    let config = configure(raw, overrides, Verb::Run)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", config.to_toml()).map_err(failed)?;
    for warning in config.warnings() {
        writeln!(out, "# warning: {warning}").map_err(failed)?;
    }
    if !has_broker {
        writeln!(out, "# no bootstrap is given: brokers and topics were not looked at").map_err(failed)?;
        return Ok(());
    }
    match topics::check(&config, &mut std::io::stderr().lock()).map_err(failed)? {
        true => writeln!(out, "# topics are as they must be").map_err(failed),
        false => Err(failed("some topics are missing or differ: see above")),
    }
}
