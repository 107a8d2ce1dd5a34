//! Which name was meant where nobody knows the one that was written.
//!
//! In: a name as it stands in the file or the environment. Out: words that help, or nothing.
//! Invariant: what is told here changes no setting; a name that is like none of ours gets no
//! guess, because the environment is full of variables of others. Values are never looked at.
use crate::config::settings::SETTINGS;
use crate::config::variables::{PREFIX, setting_variables};

/// Settings that the Python proxy had once, and what to do without them.
const GONE: &[(&str, &str)] = &[
    (
        "health_check.count_stale_documents_as_failing",
        "null for environment_update_grace_period_seconds: never stale",
    ),
    ("health_check.grace_period_seconds", "its name is health_check.environment_update_grace_period_seconds"),
    ("logging.log_file_path", STDOUT),
    ("logging.log_filename", STDOUT),
    ("logging.log_handler", STDOUT),
    ("server.log_config", STDOUT),
];

const STDOUT: &str = "the log goes to stdout; send that where it should go";

/// Shorter variables are like too many others.
const VARIABLE_CHARS_MIN: usize = 8;

/// A hint for a setting of the file that nobody knows.
pub fn setting(path: &str) -> Option<String> {
    if let Some((_, instead)) = GONE.iter().find(|(gone, _)| *gone == path) {
        return Some((*instead).to_owned());
    }
    let names = SETTINGS.iter().flat_map(|setting| {
        let (parent, _) = super::settings::split_path(setting.path);
        let aliases = setting.aliases.iter().map(move |alias| (format!("{parent}{alias}"), setting.path));
        let groups = setting.path.match_indices('.').map(|(end, _)| &setting.path[..end]);
        std::iter::once(setting.path).chain(groups).map(|name| (name.to_owned(), name)).chain(aliases)
    });
    let names: Vec<(String, &str)> = names.collect();
    nearest(path, true, names.iter().map(|(name, meant)| (name.as_str(), *meant)))
        .or_else(|| elsewhere(path))
        .map(|meant| format!("did you mean {meant}?"))
}

/// A hint for a member of an object whose members are these.
pub fn member(name: &str, members: &[&'static str]) -> Option<String> {
    let meant = nearest(name, true, members.iter().map(|member| (*member, *member)));
    meant.map(|meant| format!("did you mean {meant}?"))
}

/// A hint for an environment variable that is nearly one of ours.
pub fn variable(name: &str) -> Option<String> {
    if name.chars().count() < VARIABLE_CHARS_MIN {
        return None;
    }
    // The prefix would make any two names near.
    let (prefix, rest) = name.strip_prefix(PREFIX).map_or(("", name), |rest| (PREFIX, rest));
    let known: Vec<String> = SETTINGS.iter().flat_map(setting_variables).collect();
    let known = known.iter().filter(|known| known.starts_with(PREFIX) != prefix.is_empty());
    let names = known.map(|known| (known.strip_prefix(PREFIX).unwrap_or(known), known.as_str()));
    let meant = nearest(rest, false, names);
    meant.map(|meant| format!("did you mean {meant}?"))
}

/// The same last part in another group, such as `port` for `server.port`.
fn elsewhere(path: &str) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let wanted = last(path);
    let is_it = |setting: &&super::settings::Setting| {
        last(setting.path) == wanted || setting.aliases.contains(&wanted.as_str())
    };
    let found: Vec<&str> = SETTINGS.iter().filter(is_it).map(|setting| setting.path).collect();
    (1..=2).contains(&found.len()).then(|| found.join(" or "))
}

/// What the name nearest to `written` stands for, if one is near enough: a fifth of it may be
/// wrong; with `by_beginning` it is enough that two thirds of it are the beginning.
fn nearest<'a>(
    written: &str,
    by_beginning: bool,
    names: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    let written = plain(written);
    let near = names.filter_map(|(name, meant)| {
        let name = plain(name);
        let longest = written.chars().count().max(name.chars().count());
        let begin = written.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
        // Letters added, left out, changed, or swapped with their neighbour.
        let steps = strsim::osa_distance(&written, &name);
        let is_near = steps <= (longest / 5).max(1) || (by_beginning && begin * 3 >= longest * 2);
        is_near.then_some((steps, meant))
    });
    near.min_by_key(|(steps, _)| *steps).map(|(_, meant)| meant.to_owned())
}

/// Capitals and separators are no part of what is compared.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        for (written, meant) in [
            ("api_poll_frequncy", "api_poll_frequency_seconds"),
            ("environment_keypairs", "environment_key_pairs"),
            ("environment_keys", "environment_key_pairs"),
            ("healthcheck", "health_check"),
            ("server.prot", "server.port"),
            ("logging.level", "logging.log_level"),
            ("log_format", "logging.log_format"),
            ("colour", "logging.colours"),
            ("port", "admin.port or server.port"),
        ] {
            assert_eq!(setting(written), Some(format!("did you mean {meant}?")), "{written}");
        }
        assert!(setting("logging.log_filename").is_some_and(|hint| hint.contains("stdout")));
        assert_eq!(member("server_key", &["client_side_key", "server_side_key"]), None);
        assert!(member("serverside_key", &["client_side_key", "server_side_key"]).is_some());
    }

    #[test]
    fn what_is_nobodys_gets_no_guess() {
        for written in ["sentry_dsn", "x", "", "comment", "server.workers"] {
            assert_eq!(setting(written), None, "{written}");
        }
        for written in [
            "PATH",
            "HOME",
            "HOSTNAME",
            "HTTPS_PROXY",
            "KUBERNETES_SERVICE_PORT",
            "SERVER_SERVICE_PORT",
            "SERVER_PORT_8000_TCP_ADDR",
            "SERVER_SOMETHING_ELSE",
            "ADMIN_PASSWORD",
            "LOG_LEVEL",
            "PYTHONPATH",
            "DOCUMENT_ROOT",
            "CARGO_HOME",
            "API_BASE_URL",
            "SERVER_SOFTWARE",
            "XDG_CACHE_HOME",
        ] {
            assert_eq!(variable(written), None, "{written}");
        }
        assert_eq!(
            variable("API_POLL_FREQUENCY_SECOND").as_deref(),
            Some("did you mean API_POLL_FREQUENCY_SECONDS?")
        );
        assert_eq!(variable("LOGGING_LEVEL").as_deref(), Some("did you mean LOGGING_LOG_LEVEL?"));
    }
}
