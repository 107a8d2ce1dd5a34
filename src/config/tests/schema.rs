//! The table of settings as `render-config --all` and `--schema` print it, and secrets in files.
use super::*;

fn without_files(config: Config) -> Config {
    Config { path: None, secret_files: Vec::new(), ..config }
}

#[test]
fn every_setting_says_what_it_is() {
    for setting in SETTINGS {
        assert!(setting.meaning.ends_with('.'), "{}: takes(kind, default, meaning) is missing", setting.path);
        let default = serde_json::from_str::<Value>(setting.default);
        assert!(default.is_ok(), "{}: {:?}", setting.path, setting.default);
    }
}

/// Each default by itself, and all of them together.
#[test]
fn defaults_of_the_table_change_nothing() {
    let plain = without_files(Case::new(&json!({"environment_key_pairs": [pair()]})).config());
    for setting in SETTINGS.iter().filter(|setting| setting.path != "environment_key_pairs") {
        let mut file = json!({"environment_key_pairs": [pair()]});
        let place = setting.path.split('.').fold(&mut file, |place, name| &mut place[name]);
        *place = serde_json::from_str(setting.default).expect("JSON");
        let (config, warnings) = Case::new(&file).read().expect("valid");
        assert_eq!(without_files(config), plain, "{}", setting.path);
        assert_eq!(warnings, [], "{}", setting.path);
    }
    let all = all_settings(json!([pair()]));
    let (config, warnings) = Case::new(&all).read().expect("valid");
    assert_eq!((without_files(config), warnings), (plain, Vec::new()));
    let members = |value: &Value| value.as_object().map_or(0, |object| object.len());
    assert_eq!(members(&all["server"]["tls"]), 3);
}

#[test]
fn the_schema_member_of_a_file_is_ignored() {
    let mut file = with("$schema", json!("./config.schema.json"));
    file["server"] = json!({"$schema": 1});
    let (_, warnings) = Case::new(&file).read().expect("valid");
    let unknown: Vec<&str> = warnings.iter().map(|warning| &*warning.fields[0].1).collect();
    assert_eq!(unknown, ["server.$schema"], "only at the top");
    assert_eq!(schema()["properties"]["$schema"]["type"], "string");
}

/// A file with a secret, removed when it goes out of scope.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(name: &str, text: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("edge-proxy-secret-{name}-{}", std::process::id()));
        std::fs::write(&path, text).expect("scratch space");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn secrets_are_read_from_files() {
    let pairs = SecretFile::new("pairs", format!("{}\n", json!([pair()])).as_bytes());
    for name in ["ENVIRONMENT_KEY_PAIRS_FILE", "EDGE_PROXY_ENVIRONMENT_KEY_PAIRS_FILE"] {
        let (config, warnings) = Case::text("{}").variable(name, pairs.path()).read().expect("valid");
        assert_eq!(config.environments[0].client_side_key, "def456", "{name}");
        assert_eq!(config.secret_files, std::slice::from_ref(&pairs.0), "{name}: watched");
        assert_eq!(warnings, [], "{name}");
    }
    let key = SecretFile::new("key", b" a-proxy-key\r\n\n");
    let config = Case::text("{}").variable("EDGE_PROXY_PROXY_KEY_FILE", key.path()).config();
    assert_eq!(config.proxy_key.as_ref().map(Secret::expose), Some("a-proxy-key"));
    // Only secrets: any other setting with the suffix is unknown.
    let unknown = Case::new(&with("x", json!(1))).variable("EDGE_PROXY_SERVER_PORT_FILE", key.path()).read();
    let (config, warnings) = unknown.expect("valid");
    assert_eq!((config.server.port, config.secret_files.len(), warnings.len()), (8000, 0, 2), "{warnings:?}");
    // Empty, as in a compose file without the variable.
    let config = Case::new(&with("x", json!(1))).variable("ENVIRONMENT_KEY_PAIRS_FILE", "").config();
    assert!(config.secret_files.is_empty(), "{:?}", config.secret_files);
}

#[test]
fn files_with_secrets_that_cannot_be_used_are_errors_without_the_secret() {
    let empty = SecretFile::new("empty", b" \n");
    let bytes = SecretFile::new("bytes", b"\xFF\xFE");
    let broken = SecretFile::new("broken", b"[{\"server_side_key\": \"ser.do-not-print\"");
    for (path, expected) in [
        ("/absent/pairs", "environment_key_pairs: expected a file that can be read (No such file"),
        ("/", "expected a file that can be read (not a regular file)"),
        (empty.path(), "expected a file that is not empty"),
        (bytes.path(), "expected a file of UTF-8 text"),
        (broken.path(), "expected valid JSON"),
    ] {
        let error =
            Case::text("{}").variable("ENVIRONMENT_KEY_PAIRS_FILE", path).read().expect_err("invalid");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("ENVIRONMENT_KEY_PAIRS_FILE"), "{path}: {text}");
        assert!(!text.contains("do-not-print"), "{text}");
        let is_named = text.contains(path);
        assert!(is_named || path == broken.path(), "{path}: {text}");
    }
    let pairs = SecretFile::new("both", json!([pair()]).to_string().as_bytes());
    let both = Case::text("{}")
        .variable("ENVIRONMENT_KEY_PAIRS", &json!([pair()]).to_string())
        .variable("ENVIRONMENT_KEY_PAIRS_FILE", pairs.path());
    let text = both.read().expect_err("two sources").to_string();
    assert!(text.contains("expected not set together with ENVIRONMENT_KEY_PAIRS_FILE"), "{text}");
    assert!(!text.contains("abc123456"), "{text}");
    // Without the prefix the name may be another program's: a warning, as for its values.
    let (config, warnings) = Case::new(&with("api_url", json!("http://x")))
        .variable("PROXY_KEY_FILE", "/absent")
        .read()
        .expect("valid");
    assert_eq!((config.proxy_key, warnings[0].event), (None, "variable_ignored"));
}
