//! Tests of the limits of evaluations.
use super::*;

fn labels(name: &str) -> Labels {
    Labels { application_name: name.into(), ..Labels::default() }
}

fn plain(feature: &str) -> Evaluation<&str> {
    Evaluation { feature, version: AnalyticsVersion::One, identifier: None }
}

fn by<'a>(feature: &'a str, identifier: &'a str) -> Evaluation<&'a str> {
    let version = AnalyticsVersion::Two { is_enabled: true };
    Evaluation { feature, version, identifier: Some(identifier) }
}

fn groups(evaluations: &mut Evaluations) -> Vec<Group> {
    evaluations.take(|_, _, _| true)
}

fn bytes(evaluations: &Evaluations) -> usize {
    let labels = evaluations.environments.values().flat_map(|environment| &environment.labels);
    labels.flat_map(|label| label.rows.keys()).map(Evaluation::bytes).sum()
}

#[test]
fn truncates_identifiers_at_two_thousand_characters() {
    let mut evaluations = Evaluations::default();
    let long = "é".repeat(1_000_000);
    let exact = "é".repeat(2000);
    let mut tally = evaluations.tally("key", &labels(""), Names::Known);
    tally.add(by("f", &long), 1);
    tally.add(by("f", &exact), 2);
    tally.add(by("f", &format!("{exact}x")), 4);
    assert_eq!(evaluations.bounded.identifiers_cut, 2);
    let group = groups(&mut evaluations).pop().unwrap();
    assert_eq!(group.rows, [(by("f", &exact).owned(), 7)]);
    assert!(evaluations.environments.is_empty() && evaluations.identified_bytes == 0);
}

#[test]
fn omits_identifiers_that_core_rejects() {
    let mut evaluations = Evaluations::default();
    let mut tally = evaluations.tally("key", &labels(""), Names::Known);
    for identifier in ["", " \t\n", "\u{a0}", "a\0b"] {
        tally.add(by("f", identifier), 2);
    }
    assert_eq!(evaluations.bounded.identifiers_merged, 8);
    let group = groups(&mut evaluations).pop().unwrap();
    assert_eq!(group.rows.len(), 1);
    assert_eq!((&group.rows[0].0.identifier, group.rows[0].1), (&None, 8));
}

#[test]
fn bounds_rows_with_identifiers_without_losing_counts() {
    let mut sum = Evaluations::default();
    let mut expected = 0;
    for part in 0..4 {
        let mut evaluations = Evaluations::default();
        for number in 0..20_000 {
            let identifier = format!("{part}-{number}-{}", "x".repeat(1900));
            evaluations.tally("key", &labels(""), Names::Known).add(by("f", &identifier), 2);
            expected += 2;
        }
        assert!(bytes(&evaluations) <= limits::COUNT_LABEL_BYTES_MAX + 4096, "{}", bytes(&evaluations));
        sum.merge(evaluations);
    }
    assert_eq!((sum.sum(), sum.bounded.lost), (expected, 0));
    assert!(sum.bounded.identifiers_merged > expected / 2);
    assert!(bytes(&sum) <= limits::COUNT_LABEL_BYTES_MAX + 4096, "{}", bytes(&sum));
}

#[test]
fn a_flood_of_identifiers_does_not_affect_other_labels_and_environments() {
    let mut evaluations = Evaluations::default();
    let flood = |evaluations: &mut Evaluations, key: &str, name: &str| {
        for number in 0..20_000 {
            evaluations.tally(key, &labels(name), Names::Known).add(by("f", &number.to_string()), 1);
        }
    };
    flood(&mut evaluations, "key", "flood");
    evaluations.tally("key", &labels("honest"), Names::Known).add(by("g", "ann"), 3);
    // All environments are flooded: one more environment still has its minimum.
    for number in 0..8 {
        flood(&mut evaluations, &format!("key-{number}"), "flood");
    }
    evaluations.tally("other", &labels("honest"), Names::Known).add(by("g", "bob"), 4);
    let total = evaluations.identified_bytes;
    assert!(total <= limits::COUNT_BYTES_MAX + 10 * limits::COUNT_ENVIRONMENT_BYTES_MIN, "{total}");
    let found = groups(&mut evaluations);
    for (key, identifier, count) in [("key", "ann", 3), ("other", "bob", 4)] {
        let group =
            found.iter().find(|group| &*group.client_side_key == key && group.labels == labels("honest"));
        assert_eq!(group.unwrap().rows, [(by("g", identifier).owned(), count)]);
    }
}

#[test]
fn merges_the_newest_labels_beyond_fifty() {
    let mut evaluations = Evaluations::default();
    for number in 0..20_000 {
        let name = format!("{number}-{}", "x".repeat(240));
        evaluations.tally("key", &labels(&name), Names::Known).add(plain("f"), 1);
    }
    assert_eq!(evaluations.rows(), limits::COUNT_LABELS_MAX + 1);
    assert_eq!(evaluations.bounded.labels_merged, 20_000 - limits::COUNT_LABELS_MAX as u64);
    assert_eq!((evaluations.sum(), evaluations.bounded.lost), (20_000, 0));
    // The first labels keep their rows.
    evaluations.tally("key", &labels(&format!("3-{}", "x".repeat(240))), Names::Known).add(plain("f"), 5);
    let found = groups(&mut evaluations);
    assert_eq!(found.len(), limits::COUNT_LABELS_MAX + 1);
    let third = found.iter().find(|group| group.labels.application_name.starts_with("3-")).unwrap();
    assert_eq!(third.rows, [(plain("f").owned(), 6)]);
    let merged = found.iter().find(|group| group.labels == Labels::default()).unwrap();
    assert_eq!(merged.rows, [(plain("f").owned(), 20_000 - limits::COUNT_LABELS_MAX as u64)]);
    // After an upload there is capacity for new labels.
    evaluations.tally("key", &labels("new"), Names::Known).add(plain("f"), 1);
    assert_eq!(groups(&mut evaluations)[0].labels, labels("new"));
}

#[test]
fn bounds_names_while_there_is_no_document() {
    let mut evaluations = Evaluations::default();
    for number in 0..50_000_u64 {
        evaluations.tally("key", &labels("a"), Names::Unknown).add(plain(&number.to_string()), 1);
    }
    assert!(bytes(&evaluations) <= 5 * limits::COUNT_UNKNOWN_BYTES_MAX, "{}", bytes(&evaluations));
    assert_eq!(evaluations.sum() + evaluations.bounded.lost, 50_000);
    assert!(evaluations.bounded.lost > 0);
    evaluations.tally("other", &labels("a"), Names::Unknown).add(plain("f"), 1);
    assert!(evaluations.take(|key, _, _| key == "other").len() == 1, "another environment has its own limit");
}

#[test]
fn returns_counts_that_were_put_back() {
    let mut evaluations = Evaluations::default();
    evaluations.tally("key", &labels("a"), Names::Known).add(plain("f"), 2);
    evaluations.tally("key", &labels("a"), Names::Known).add(by("f", "i"), 3);
    let taken = evaluations.take(|_, _, is_detailed| is_detailed);
    assert_eq!((taken.len(), evaluations.sum()), (1, 2));
    evaluations.put_back(&taken[0]);
    assert_eq!((evaluations.sum(), evaluations.rows()), (5, 2));
    evaluations.retain(|key| key != "key");
    assert!(evaluations.is_empty());
}

#[test]
fn truncates_text_between_characters() {
    assert_eq!(cut_bytes("aéz", 2), "a");
    assert_eq!(cut_bytes("aéz", 3), "aé");
    assert_eq!(cut_bytes("aéz", 9), "aéz");
    assert_eq!(cut_characters("aéz", 2), "aé");
    assert_eq!(cut_characters("aéz", 3), "aéz");
}
