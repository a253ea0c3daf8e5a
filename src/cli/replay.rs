//! `stopgate replay`.

use super::{ClusterArgs, failed, init_log, refused, stop_on_signals};
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use stopgate::config::{LogFormat, Verb};
use stopgate::domain::time::Timestamp;
use stopgate::run::replay::{self, OffsetRange, Options};
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;

/// Which stage's work is done again.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Sends: decided again at the positions of their decision blocks
    Filter,
}

#[derive(Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// What is done again
    #[arg(long, value_enum, default_value = "filter")]
    stage: Stage,
    /// A stretch of one input partition, TO exclusive; may be repeated [default: everything]
    ///
    /// TOPIC:P:FROM-TO where several topics are configured.
    #[arg(long, value_name = "P:FROM-TO")]
    offsets: Vec<OffsetRange>,
    /// Records of this Kafka time or later (RFC 3339)
    #[arg(long, value_name = "T", value_parser = super::time)]
    since: Option<Timestamp>,
    /// Records before this Kafka time (RFC 3339)
    #[arg(long, value_name = "T", value_parser = super::time)]
    until: Option<Timestamp>,
    /// Only sends whose id stands in this file, one a line
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// JSON Lines also on a terminal: one object for each difference, then {"summary":…}
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    let config = args.cluster.configure(Verb::Run)?;
    let options = Options {
        offsets: args.offsets.clone(),
        since: args.since,
        until: args.until,
        ids: args.ids.as_deref().map(ids).transpose()?,
        json: args.json || !std::io::stdout().is_terminal(),
    };
    let stop = Stop::default();
    stop_on_signals(&stop).map_err(failed)?;
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let summary = match args.stage {
        Stage::Filter => replay::filter(config, &options, &mut out, &stop),
    }
    .map_err(refused)?;
    if let Some(gone) = replay::gone(&options, &summary) {
        return Err(refused(gone));
    }
    if !summary.resume.is_empty() {
        return Err(refused("stopped before the end"));
    }
    match summary.differences() {
        0 => Ok(()),
        count => Err(failed(format!("{count} differences"))),
    }
}

fn ids(path: &Path) -> Result<BTreeSet<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    let ids: BTreeSet<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if ids.is_empty() { Err(refused(format!("{}: no id in it", path.display()))) } else { Ok(ids) }
}
