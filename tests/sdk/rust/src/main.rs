//! The crates.io SDK: `rust-sdk-test API_URL SERVER_KEY`. Remote and local evaluation agree.
use std::collections::{BTreeMap, BTreeSet};

use flagsmith::flagsmith::models::{Flags, SDKTrait};
use flagsmith::{Flagsmith, FlagsmithOptions};
use flagsmith_flag_engine::types::{FlagsmithValue, FlagsmithValueType};

fn plain(flags: &Flags) -> BTreeMap<String, (bool, String)> {
    flags.all_flags().into_iter().map(|flag| (flag.feature_name, (flag.enabled, flag.value.value))).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let options = |enable_local_evaluation| FlagsmithOptions {
        api_url: arguments[1].clone(),
        enable_local_evaluation,
        ..FlagsmithOptions::default()
    };
    let remote = Flagsmith::new(arguments[2].clone(), options(false));
    let local = Flagsmith::new(arguments[2].clone(), options(true));
    let environment = plain(&remote.get_environment_flags().expect("flags"));
    assert!(environment.len() >= 7);
    assert_eq!(environment, plain(&local.get_environment_flags().expect("flags")));
    println!("environment: {} flags agree", environment.len());
    let mut banners = BTreeSet::new();
    for number in 0..50 {
        let text = |value: &str| FlagsmithValue { value: value.into(), value_type: FlagsmithValueType::String };
        let traits = || {
            let plan = if number % 3 == 0 { "gold" } else { "silver" };
            Some(vec![SDKTrait::new("plan".into(), text(plan)), SDKTrait::new_with_transient("n".into(), text("x"), true)])
        };
        let identifier = format!("user-{number}");
        let left = plain(&remote.get_identity_flags(&identifier, traits(), Some(number % 2 == 0)).expect("flags"));
        let right = plain(&local.get_identity_flags(&identifier, traits(), None).expect("flags"));
        assert_eq!(left, right, "{identifier}");
        banners.insert(left["banner"].1.clone());
    }
    assert_eq!(banners.into_iter().collect::<Vec<_>>(), ["golden", "hello"]);
    println!("50 identities agree");
}
