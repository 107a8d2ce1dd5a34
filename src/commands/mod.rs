//! Subcommands with their arguments. `serve` and `demo` have only their arguments here: `crate::serve`
//! runs them.
pub mod arguments;
pub mod check;
pub mod completions;
pub mod explain;
pub mod health;
pub mod man;
pub mod render_config;
