//! `stopgate replay`.

use super::{ClusterArgs, failed, init_log, refused, stop_on_signals};
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use stopgate::config::{self, Config, LogFormat, Overrides, Verb};
use stopgate::domain::time::Timestamp;
use stopgate::run::replay::{self, OffsetRange, Options};
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;

/// Which stage's work is done again.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Sends: decided again at the positions of their decision blocks
    Filter,
    /// Messages: understood again, and held against the records of opt-outs that name them
    Detect,
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
    /// What if: which decisions would differ under the rules of this directory, counted and sampled
    ///
    /// It holds a stopgate.toml with other businesses, templates, categories, policies or words, or language files, or both. With
    /// --stage detect: which messages would ask for something else. With --stage filter: which sends would be decided otherwise; where
    /// words or policies differ, on the opt-outs that these would have written, as far as the inbound topics still hold the messages.
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// JSON Lines also on a terminal: one object for each difference, then {"summary":…}
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    let config = args.cluster.configure(Verb::Run)?;
    let what_if = args.rules.as_deref().map(|directory| rules(args, directory)).transpose()?;
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
        Stage::Filter => replay::filter(config, what_if.as_ref(), &options, &mut out, &stop),
        Stage::Detect => replay::detect(config, what_if.as_ref(), &options, &mut out, &stop),
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

/// The configuration of the command with the rules of a directory.
fn rules(args: &ReplayArgs, directory: &Path) -> Result<Config, Failure> {
    let told = |path: &Path, error: std::io::Error| refused(format!("{}: {error}", path.display()));
    let mut raw = args.cluster.read()?;
    let file = directory.join("stopgate.toml");
    let mut found = false;
    if file.exists() {
        found = true;
        let name = file.display().to_string();
        let text = std::fs::read_to_string(&file).map_err(|error| told(&file, error))?;
        raw = raw.with_rules_of(config::parse(&text, &name).map_err(refused)?);
    }
    let entries = std::fs::read_dir(directory).map_err(|error| told(directory, error))?;
    let is_words = |path: PathBuf| path != file && path.extension().is_some_and(|extension| extension == "toml");
    if entries.flatten().any(|entry| is_words(entry.path())) {
        found = true;
        raw.lexicon_dir = Some(directory.to_owned());
    }
    if !found {
        return Err(refused(format!("{}: neither a stopgate.toml nor language files (*.toml)", directory.display())));
    }
    super::configure(raw, Overrides { bootstrap: args.cluster.bootstrap.clone(), ..Overrides::default() }, Verb::Run)
}

fn ids(path: &Path) -> Result<BTreeSet<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    let ids: BTreeSet<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if ids.is_empty() { Err(refused(format!("{}: no id in it", path.display()))) } else { Ok(ids) }
}
