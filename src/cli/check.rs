//! `stopgate check`.

use super::service::ServiceArgs;
use super::{configure, failed};
use std::io::Write;
use stopgate::config::Verb;
use stopgate::run::service::Failure;
use stopgate::run::topics;

pub(crate) fn run(args: &ServiceArgs) -> Result<(), Failure> {
    let raw = args.cluster.read()?;
    let mut overrides = args.overrides();
    let has_broker = overrides.bootstrap.is_some() || raw.bootstrap.is_some();
    if !has_broker {
        overrides.bootstrap = Some("none".to_owned());
    }
    let config = configure(raw, overrides, Verb::Run)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", config.to_toml()).map_err(failed)?;
    for warning in config.warnings() {
        writeln!(out, "# warning: {warning}").map_err(failed)?;
    }
    if !has_broker {
        writeln!(out, "# no bootstrap is given: brokers and topics were not looked at").map_err(failed)?;
        return Ok(());
    }
    match topics::check(&config, &mut std::io::stderr().lock()).map_err(failed)? {
        true => writeln!(out, "# topics are as they must be").map_err(failed),
        false => Err(failed("some topics are missing or differ: see above")),
    }
}
