//! `stopgate topics`.

use super::{ClusterArgs, failed};
use stopgate::config::Verb;
use stopgate::run::service::Failure;
use stopgate::run::topics;

pub(crate) fn run(args: &ClusterArgs) -> Result<(), Failure> {
    match topics::create(&args.configure(Verb::Run)?, &mut std::io::stdout().lock()).map_err(failed)? {
        true => Ok(()),
        false => Err(failed("some topics differ from what is wanted: see above")),
    }
}
