//! `stopgate bench`.

use super::{ClusterArgs, failed, init_log};
use clap::Args;
use stopgate::config::{LogFormat, Overrides, Verb};
use stopgate::run::bench::{self, Measured, Options, Size};
use stopgate::run::service::Failure;

#[derive(Args)]
pub(crate) struct BenchArgs {
    what: Measured,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Opt-outs to write; for latency, people who stop (at most 200)
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    opt_outs: u64,
    /// Sends to write; for detect, messages
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    sends: u64,
    /// Partitions of the topics that are made
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    partitions: u32,
    /// Worker threads of the stage [default: 2 of the filter, 1 of detection]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// Keep the topics of this run
    #[arg(long)]
    keep: bool,
    /// One JSON object a line: bench, count, seconds, rate, cpu_us, rss_bytes, p50_ms, p99_ms, ratio_to_copy, fence_wait_share
    #[arg(long)]
    json: bool,
    /// Fill the topics that the configuration names, making those that are missing, so that the service itself can be timed
    ///
    /// Opt-outs of business acme, channel whatsapp, phones +55119 and eight digits, every tenth number; sends to random
    /// numbers of that range, four of five marketing.
    #[arg(long)]
    default_topics: bool,
}

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if args.default_topics && args.what != Measured::Fill {
        return Err(super::refused("--default-topics goes with `bench fill` alone: every other measurement has topics of its own"));
    }
    // Readiness of the measured service is of no interest here; what goes wrong is.
    init_log(LogFormat::Text, "error");
    let size = Size { opt_outs: args.opt_outs, sends: args.sends, partitions: args.partitions };
    let options = Options { size, workers: args.workers, keep: args.keep, json: args.json };
    let mut raw = args.cluster.read()?;
    let mut out = std::io::stdout().lock();
    if args.default_topics {
        raw.topics.partitions = args.partitions;
        let overrides = Overrides { bootstrap: args.cluster.bootstrap.clone(), ..Overrides::default() };
        let config = super::configure(raw, overrides, Verb::Run)?;
        return bench::fill_default_topics(&config, &options, &mut out).map_err(failed);
    }
    let bootstrap = args.cluster.bootstrap.clone().or_else(|| raw.bootstrap.clone());
    let bootstrap = bootstrap.ok_or_else(|| super::refused("bootstrap is missing: give --bootstrap HOST:PORT"))?;
    bench::run(&raw, &bootstrap, args.what, &options, &mut out).map_err(failed)
}
