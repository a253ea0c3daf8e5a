//! `stopgate demo`.

use super::{failed, stop_on_signals};
use clap::Args;
use stopgate::run::demo;
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Keep it running, with people who write and campaigns that go out, the console and the API, until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// Where the console is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9470", requires = "serve")]
    http: String,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let stop = Stop::default();
    if args.serve {
        stop_on_signals(&stop).map_err(failed)?;
    }
    demo::run(&mut std::io::stdout().lock(), args.serve.then_some(args.http.as_str()), &stop).map_err(failed)
}
