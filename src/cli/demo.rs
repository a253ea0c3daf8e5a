//! `stopgate demo`.

use super::{failed, refused, stop_on_signals};
use clap::Args;
use std::path::{Path, PathBuf};
use stopgate::run::demo;
use stopgate::run::scenario;
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Keep it running, with people who write and campaigns that go out, the console and the API, until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// Play a conversation from a text file instead, and compare what follows with what the file says should: see tests/scenarios
    #[arg(long, value_name = "FILE", conflicts_with = "serve")]
    scenario: Option<PathBuf>,
    /// Where the console is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9470", requires = "serve")]
    http: String,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    if let Some(path) = &args.scenario {
        return play(path);
    }
    let stop = Stop::default();
    if args.serve {
        stop_on_signals(&stop).map_err(failed)?;
    }
    demo::run(&mut std::io::stdout().lock(), args.serve.then_some(args.http.as_str()), &stop).map_err(failed)
}

/// Exit codes as of `diff`: 0 as the file says, 1 otherwise, 2 where it is no scenario.
fn play(path: &Path) -> Result<(), Failure> {
    let told = |why: String| refused(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| told(error.to_string()))?;
    match scenario::play(&text, &mut std::io::stdout().lock()).map_err(|error| told(error.to_string()))? {
        true => Ok(()),
        false => Err(failed(format!("{}: not as the file says: see the lines with ✗", path.display()))),
    }
}
