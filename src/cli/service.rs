//! `stopgate run`, `detect`, `filter`.

use super::{ClusterArgs, configure, failed, init_log, stop_on_signals};
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;
use stopgate::config::{FenceLevel, LogFormat, Overrides, Verb};
use stopgate::metrics::Metrics;
use stopgate::run::layout::Brokers;
use stopgate::run::service::{self, Failure};
use stopgate::run::stop::Stop;

#[derive(Args)]
pub(crate) struct ServiceArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Worker threads of each stage [default: 2 of the filter (1 with guidance), 1 of detection]
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
    /// What the command line sets over file and environment.
    pub(crate) fn overrides(&self) -> Overrides {
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

/// Serves until a signal asks for the end.
pub(crate) fn run(args: &ServiceArgs, verb: Verb) -> Result<(), Failure> {
    // First of all: whoever is asked to end while starting ends as one that serves does.
    let stop = Stop::default();
    stop_on_signals(&stop).map_err(failed)?;
    let raw = args.cluster.read()?;
    init_log(args.log_format.or(raw.log_format).unwrap_or_default(), "info");
    let config = configure(raw, args.overrides(), verb)?;
    service::run(config, verb, Brokers::Real, Arc::new(Metrics::new()), &stop)
}
