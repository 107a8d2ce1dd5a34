//! Suggestions for misspelled names of settings and environment variables.
//!
//! A name that resembles no setting gets no suggestion, because the environment contains many variables of
//! other programs.
use crate::config::settings::{PREFIX, SETTINGS, Setting, groups_of, split_path};

/// Settings that older versions of the Python proxy had, and their replacements.
const REMOVED: &[(&str, &str)] = &[
    (
        "health_check.count_stale_documents_as_failing",
        "set health_check.environment_update_grace_period_seconds to null: documents are never stale",
    ),
    ("health_check.grace_period_seconds", "renamed to health_check.environment_update_grace_period_seconds"),
    ("logging.log_file_path", STDOUT),
    ("logging.log_filename", STDOUT),
    ("logging.log_handler", STDOUT),
    ("server.log_config", STDOUT),
];

const STDOUT: &str = "the log goes to stdout; redirect that instead";

/// Shorter names resemble too many variables of other programs.
const VARIABLE_CHARS_MIN: usize = 8;

/// A hint for an unknown setting of the file.
pub fn setting(path: &str) -> Option<String> {
    if let Some((_, replacement)) = REMOVED.iter().find(|(removed, _)| *removed == path) {
        return Some((*replacement).to_owned());
    }
    let names = SETTINGS.iter().flat_map(|setting| {
        let (parent, _) = split_path(setting.path);
        let aliases = setting.aliases.iter().map(move |alias| (format!("{parent}{alias}"), setting.path));
        let groups = groups_of(setting.path);
        std::iter::once(setting.path).chain(groups).map(|name| (name.to_owned(), name)).chain(aliases)
    });
    let names: Vec<(String, &str)> = names.collect();
    nearest(path, true, names.iter().map(|(name, suggested)| (name.as_str(), *suggested)))
        .or_else(|| in_other_group(path))
        .map(|suggested| format!("did you mean {suggested}?"))
}

/// A hint for an unknown member of an object that has these members.
pub fn member(name: &str, members: &[&'static str]) -> Option<String> {
    let suggested = nearest(name, true, members.iter().map(|member| (*member, *member)));
    suggested.map(|suggested| format!("did you mean {suggested}?"))
}

/// A hint for an environment variable that resembles one of a setting.
pub fn variable(name: &str) -> Option<String> {
    if name.chars().count() < VARIABLE_CHARS_MIN {
        return None;
    }
    // Names are compared without the prefix, which would make any two of them similar.
    let (prefix, rest) = name.strip_prefix(PREFIX).map_or(("", name), |rest| (PREFIX, rest));
    let known: Vec<String> = SETTINGS.iter().flat_map(Setting::all_variables).collect();
    let known = known.iter().filter(|known| known.starts_with(PREFIX) != prefix.is_empty());
    let names = known.map(|known| (known.strip_prefix(PREFIX).unwrap_or(known), known.as_str()));
    let suggested = nearest(rest, false, names);
    suggested.map(|suggested| format!("did you mean {suggested}?"))
}

/// Settings with the same last part in another group, such as `server.port` for `port`.
fn in_other_group(path: &str) -> Option<String> {
    let (_, name) = split_path(path);
    let has_name = |setting: &&Setting| split_path(setting.path).1 == name || setting.aliases.contains(&name);
    let found: Vec<&str> = SETTINGS.iter().filter(has_name).map(|setting| setting.path).collect();
    (1..=2).contains(&found.len()).then(|| found.join(" or "))
}

/// The suggestion of the candidate nearest to `name`, if one is near enough: by an edit distance of at most
/// a fifth of the length or, with `by_prefix`, by a common prefix of two thirds. Candidates are pairs of
/// name and suggestion.
fn nearest<'a>(
    name: &str,
    by_prefix: bool,
    candidates: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    let name = normalized(name);
    let near = candidates.filter_map(|(candidate, suggested)| {
        let candidate = normalized(candidate);
        let longest = name.chars().count().max(candidate.chars().count());
        let prefix = name.chars().zip(candidate.chars()).take_while(|(a, b)| a == b).count();
        // Insertions, deletions, substitutions and transpositions of neighbours.
        let distance = strsim::osa_distance(&name, &candidate);
        let is_near = distance <= (longest / 5).max(1) || (by_prefix && prefix * 3 >= longest * 2);
        is_near.then_some((distance, suggested))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, suggested)| suggested.to_owned())
}

/// Case and separators are not compared.
fn normalized(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_similar_names() {
        for (name, suggested) in [
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
            assert_eq!(setting(name), Some(format!("did you mean {suggested}?")), "{name}");
        }
        assert!(setting("logging.log_filename").is_some_and(|hint| hint.contains("stdout")));
        assert_eq!(member("server_key", &["client_side_key", "server_side_key"]), None);
        assert!(member("serverside_key", &["client_side_key", "server_side_key"]).is_some());
    }

    #[test]
    fn suggests_nothing_for_unrelated_names() {
        for name in ["sentry_dsn", "x", "", "comment", "server.workers"] {
            assert_eq!(setting(name), None, "{name}");
        }
        for name in [
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
            assert_eq!(variable(name), None, "{name}");
        }
        assert_eq!(
            variable("API_POLL_FREQUENCY_SECOND").as_deref(),
            Some("did you mean API_POLL_FREQUENCY_SECONDS?")
        );
        assert_eq!(variable("LOGGING_LEVEL").as_deref(), Some("did you mean LOGGING_LOG_LEVEL?"));
    }
}
