//! One line of the log.
use std::time::SystemTime;

use crate::config::Level;

#[derive(Clone, Debug)]
pub struct Record {
    pub time: SystemTime,
    pub level: Level,
    pub event: &'static str,
    pub fields: Vec<(&'static str, String)>,
}
