//! When the certificates of the TLS listener are read again: on SIGHUP, or when their files changed.
//!
//! An unusable certificate replaces nothing and is logged once. Open connections keep the certificate that
//! they started with.
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use crate::channel::ReactorMessage;
use crate::config::{Level, SettingError};
use crate::limits;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;

/// Checks the files every `CONFIG_POLL`.
#[derive(Debug)]
pub struct CertificateWatch {
    due: Instant,
}

impl CertificateWatch {
    pub fn new(now: Instant) -> Self {
        Self { due: now + limits::CONFIG_POLL }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        if self.due <= context.now.instant {
            self.due = context.now.instant + limits::CONFIG_POLL;
            context.actions.push(Action::CheckCertificates { reload_from: None });
        }
    }

    /// Reads the files of the current configuration, changed or not.
    pub fn reload(&mut self, context: &mut EventContext<'_>) {
        self.due = context.now.instant + limits::CONFIG_POLL;
        let reload_from = context.config.server.tls.clone();
        context.actions.push(Action::CheckCertificates { reload_from });
    }

    pub fn read(&self, result: Result<Arc<ServerConfig>, SettingError>, context: &mut EventContext<'_>) {
        match result {
            Ok(settings) => {
                context.actions.log(Level::Info, "certificates_renewed", &[]);
                context.actions.push(Action::Send(ReactorMessage::Certificates(settings)));
            }
            Err(error) => context.actions.log(
                Level::Error,
                "certificates_refused",
                &[("error", &error), ("serving", &"with the old pair")],
            ),
        }
    }
}
