//! `multivio openapi`: the document that is kept as `openapi.json` (`bin/prepare` writes it, a test compares it).

use super::{Failure, Screen};
use crate::api;

#[derive(Debug, clap::Args)]
pub struct Arguments;

pub async fn run(_arguments: Arguments, _screen: Screen) -> Result<(), Failure> {
    super::print_line(api::openapi_json().trim_end());
    Ok(())
}
