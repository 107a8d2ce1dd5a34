//! Certificates of the TLS listener, while serving.
//!
//! In: SIGHUP, or files that changed. Out: new settings for the reactors, or one line that says
//! what is wrong. Invariants: a pair that is not good replaces nothing and is told once; no
//! connection ends because of a change. The files are small and local, so they are read here.
use std::fmt::Display;
use std::time::Instant;

use crate::channel::ReactorMessage;
use crate::config::Level;
use crate::limits;
use crate::supervisor::Supervisor;
use crate::tls::Certificates;

/// When to look at the files next.
pub struct CertificateWatch {
    certificates: Certificates,
    due: Instant,
}

impl CertificateWatch {
    pub fn new(certificates: Certificates) -> Self {
        Self { certificates, due: Instant::now() + limits::CONFIG_POLL }
    }

    pub fn due(&self) -> Instant {
        self.due
    }
}

impl Supervisor {
    /// Looks whether the files changed, if it is time to; `is_asked` reads them in any case.
    pub fn renew_certificates(&mut self, now: Instant, is_asked: bool) {
        let Some(watch) = &mut self.certificates else { return };
        if now < watch.due && !is_asked {
            return;
        }
        watch.due = now + limits::CONFIG_POLL;
        let read = match &self.config.server.tls {
            Some(files) if is_asked => Some(watch.certificates.reload_from(files)),
            _ => watch.certificates.reload_if_changed(),
        };
        match read {
            None => {}
            Some(Ok(settings)) => {
                self.records.log.event(Level::Info, "certificates_renewed", &[]);
                self.command(ReactorMessage::Certificates(settings));
            }
            Some(Err(error)) => {
                let fields: [(_, &dyn Display); 2] = [("error", &error), ("serving", &"with the old pair")];
                self.records.log.event(Level::Error, "certificates_refused", &fields);
            }
        }
    }
}
