//! The subcommands besides `serve`.
pub mod check;
pub mod explain;
pub mod health;
