//! `stopgate report`.

use super::{ClusterArgs, failed, init_log, refused, stop_on_signals};
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use stopgate::config::{LogFormat, Verb};
use stopgate::domain::time::Timestamp;
use stopgate::run::now;
use stopgate::run::report::{self, Period};
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;

#[derive(Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// From this time on (RFC 3339)
    #[arg(long, value_name = "T", value_parser = super::time)]
    since: Timestamp,
    /// Before this time (RFC 3339) [default: now]
    #[arg(long, value_name = "T", value_parser = super::time)]
    until: Option<Timestamp>,
    /// How it is written
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// Where to [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Csv,
    Json,
    Html,
}

pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    let config = args.cluster.configure(Verb::Run)?;
    let now = now();
    let until = args.until.unwrap_or(now);
    if args.since >= until {
        return Err(refused("--since is not before --until"));
    }
    let stop = Stop::default();
    stop_on_signals(&stop).map_err(failed)?;
    let told = report::read(&config, Period { since: args.since, until, now }, &stop).map_err(refused)?;
    let format = match (args.json, args.format) {
        (true, _) | (false, Format::Json) => report::Format::Json,
        (false, Format::Text) => report::Format::Text,
        (false, Format::Csv) => report::Format::Csv,
        (false, Format::Html) => report::Format::Html,
    };
    match &args.output {
        None => report::write(&told, format, &mut BufWriter::new(std::io::stdout().lock())).map_err(failed),
        Some(path) => {
            let file = File::create(path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
            report::write(&told, format, &mut BufWriter::new(file)).map_err(failed)
        }
    }
}
