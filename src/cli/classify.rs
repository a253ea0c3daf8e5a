//! `stopgate classify`.

use super::{failed, refused};
use clap::Args;
use std::path::PathBuf;
use stopgate::run::service::Failure;
use stopgate::run::{classify, words};

#[derive(Args)]
pub(crate) struct ClassifyArgs {
    /// Directory of language files (*.toml) to use instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    lexicon: Option<PathBuf>,
    /// Add a field that says in a line why it was decided so
    #[arg(long)]
    explain: bool,
}

pub(crate) fn run(args: &ClassifyArgs) -> Result<(), Failure> {
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
