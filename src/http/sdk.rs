//! The SDK that sent a request, by its user agent (compatibility.md 1.2).
use crate::http::fields::Fields;

/// Flagsmith's SDKs, and all other clients; also a label of metrics, so that clients cannot add labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    Dotnet,
    Elixir,
    Flutter,
    Go,
    Java,
    JavaScript,
    Kotlin,
    NodeJs,
    Php,
    Python,
    Ruby,
    Rust,
    Swift,
    /// Anything else, OpenFeature providers with a user agent of their HTTP library included.
    Other,
}

impl Sdk {
    /// All variants in declaration order, which `metrics` uses as an index and a test there checks.
    pub const ALL: [Self; 14] = [
        Self::Dotnet,
        Self::Elixir,
        Self::Flutter,
        Self::Go,
        Self::Java,
        Self::JavaScript,
        Self::Kotlin,
        Self::NodeJs,
        Self::Php,
        Self::Python,
        Self::Ruby,
        Self::Rust,
        Self::Swift,
        Self::Other,
    ];

    /// The name in metrics: that of the user agent, without `flagsmith-`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dotnet => "dotnet-sdk",
            Self::Elixir => "elixir-sdk",
            Self::Flutter => "flutter-sdk",
            Self::Go => "go-sdk",
            Self::Java => "java-sdk",
            Self::JavaScript => "js-sdk",
            Self::Kotlin => "kotlin-android-sdk",
            Self::NodeJs => "nodejs-sdk",
            Self::Php => "php-sdk",
            Self::Python => "python-sdk",
            Self::Ruby => "ruby-sdk",
            Self::Rust => "rust-sdk",
            Self::Swift => "swift-ios-sdk",
            Self::Other => "other",
        }
    }

    /// Browsers do not allow scripts to set `User-Agent`, so the JavaScript SDK has a field of its name.
    pub fn of(fields: &Fields<'_>) -> Self {
        let agent = fields.sdk_user_agent.or(fields.user_agent).unwrap_or_default();
        let Some(rest) = agent.strip_prefix(b"flagsmith-") else { return Self::Other };
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        match &rest[..end] {
            b"dotnet-sdk" => Self::Dotnet,
            b"elixir-sdk" => Self::Elixir,
            b"flutter-sdk" => Self::Flutter,
            b"go-sdk" => Self::Go,
            b"java-sdk" => Self::Java,
            b"js-sdk" => Self::JavaScript,
            b"kotlin-android-sdk" => Self::Kotlin,
            b"nodejs-sdk" => Self::NodeJs,
            b"php-sdk" => Self::Php,
            b"python-sdk" => Self::Python,
            b"ruby-sdk" => Self::Ruby,
            b"rust-sdk" => Self::Rust,
            b"swift-ios-sdk" => Self::Swift,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sdk_is_found_by_its_user_agent() {
        for sdk in Sdk::ALL {
            let agent = format!("flagsmith-{}/1.2.3", sdk.name());
            let fields = Fields { user_agent: Some(agent.as_bytes()), ..Fields::default() };
            assert_eq!(Sdk::of(&fields), sdk, "{agent}");
        }
        for (user_agent, sdk_user_agent, expected) in [
            (None, None, Sdk::Other),
            (Some("Mozilla/5.0"), Some("flagsmith-js-sdk/9.0.0"), Sdk::JavaScript),
            (Some("flagsmith-php-sdk"), None, Sdk::Php),
            (Some("my-flagsmith-php-sdk/1"), None, Sdk::Other),
            (Some("flagsmith-cobol-sdk/1"), None, Sdk::Other),
        ] {
            let fields = Fields {
                user_agent: user_agent.map(str::as_bytes),
                sdk_user_agent: sdk_user_agent.map(str::as_bytes),
                ..Fields::default()
            };
            assert_eq!(Sdk::of(&fields), expected, "{user_agent:?}");
        }
    }
}
