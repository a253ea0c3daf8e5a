//! The command line: one file for each verb, with its arguments and what it starts. What all of them share stands here:
//! how the configuration is found, how the log is written, and which failure has which exit code.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod classify;
pub(crate) mod demo;
pub(crate) mod explain;
pub(crate) mod opt_out;
pub(crate) mod replay;
pub(crate) mod report;
pub(crate) mod review;
pub(crate) mod service;
pub(crate) mod topics;

use clap::Args;
use std::io::IsTerminal;
use std::path::PathBuf;
use stopgate::config::{self, Config, LogFormat, Overrides, RawConfig, Verb};
use stopgate::domain::consent::Position;
use stopgate::domain::time::Timestamp;
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;
use tracing_subscriber::EnvFilter;

/// What every verb that talks to a broker takes.
#[derive(Args)]
pub(crate) struct ClusterArgs {
    /// Kafka brokers, separated by commas
    #[arg(long, env = "STOPGATE_BOOTSTRAP", value_name = "HOST:PORT")]
    pub(crate) bootstrap: Option<String>,
    /// Configuration file (TOML); flags and STOPGATE_… variables win over it
    #[arg(long, env = "STOPGATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl ClusterArgs {
    /// The configuration file with the environment over it; only the environment where no file is named.
    pub(crate) fn read(&self) -> Result<RawConfig, Failure> {
        let Some(path) = &self.config else { return Ok(RawConfig::default().with_environment(variables())) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
        Ok(config::parse(&text, &name).map_err(refused)?.with_environment(variables()))
    }

    /// The checked configuration of a verb that takes no settings of its own from the command line.
    pub(crate) fn configure(&self, verb: Verb) -> Result<Config, Failure> {
        configure(self.read()?, Overrides { bootstrap: self.bootstrap.clone(), ..Overrides::default() }, verb)
    }
}

/// The environment as far as it is text: what is not can be no setting of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Wrong arguments or configuration: exit code 2.
pub(crate) fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(error.to_string())
}

/// Failed while running: exit code 1.
pub(crate) fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

fn host() -> String {
    hostname::get().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

/// Settings as meant: file and environment, with the command line over them.
pub(crate) fn configure(raw: RawConfig, overrides: Overrides, verb: Verb) -> Result<Config, Failure> {
    raw.overridden(overrides).check(verb, &host()).map_err(refused)
}

/// An RFC 3339 time of the command line.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    stopgate::wire::when::from_text(text).ok_or_else(|| format!("{text:?} is no time such as 2026-11-01T10:00:00Z"))
}

/// A place on opt-outs, as `stopgate-cause` names it.
pub(crate) fn position(text: &str) -> Result<Position, String> {
    text.parse().map_err(|()| format!("{text:?} is not P@O, such as 3@1017"))
}

/// Starts the log on standard error; STOPGATE_LOG wins over `directives`.
pub(crate) fn init_log(format: LogFormat, directives: &str) {
    let filter = EnvFilter::try_from_env("STOPGATE_LOG").unwrap_or_else(|_| EnvFilter::new(directives));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// The first SIGTERM or SIGINT drains; a second one ends the process at once.
pub(crate) fn stop_on_signals(stop: &Stop) -> std::io::Result<()> {
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
