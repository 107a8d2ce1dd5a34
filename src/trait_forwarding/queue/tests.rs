use super::*;

fn queue(bytes_max: u64) -> TraitQueue {
    TraitQueue::new(bytes_max, false, Arc::default())
}

fn add(queue: &mut TraitQueue, identifier: &str, key: &str, number: i64) {
    queue.add("env", identifier, key, Some(TraitValue::Int(number)), SystemTime::now());
}

fn all(queue: &TraitQueue) -> Vec<(String, String, String)> {
    let batch = queue.batch("env", u64::MAX, |_| true);
    batch.into_iter().map(|item| (item.identifier.into(), item.key.into(), item.json.into())).collect()
}

fn item(identifier: &str, key: &str, json: &str) -> (String, String, String) {
    (identifier.into(), key.into(), json.into())
}

#[test]
fn the_last_value_of_each_identity_and_key_waits() {
    let mut queue = queue(1 << 20);
    for number in 0..5 {
        add(&mut queue, "b", "k", number);
    }
    add(&mut queue, "a", "k", 7);
    queue.add("env", "b", "k", None, SystemTime::now());
    queue.add("env", " a ", "l ", Some(TraitValue::Text("x")), SystemTime::now());
    assert_eq!(all(&queue), [item("b", "k", "null"), item("a", "k", "7"), item("a", "l", "\"x\"")]);
    assert_eq!(queue.size().0, 3);
    queue.add("env", "a", &"k".repeat(201), None, SystemTime::now());
    queue.add("env", "a", "k", Some(TraitValue::Float(f64::NAN)), SystemTime::now());
    assert_eq!(queue.metrics.lost_of(TraitForwardLoss::Invalid as usize), 2);
}

#[test]
fn a_value_that_changed_while_it_was_sent_is_sent_again() {
    let mut queue = queue(1 << 20);
    add(&mut queue, "a", "k", 1);
    add(&mut queue, "a", "l", 1);
    let (batch, version) = (queue.batch("env", u64::MAX, |_| true), queue.version());
    add(&mut queue, "a", "k", 2);
    queue.finish("env", &batch);
    assert_eq!(all(&queue), [item("a", "k", "2")]);
    assert!(queue.batch("env", version, |_| true).is_empty(), "it is of the next round");
    let batch = queue.batch("env", u64::MAX, |_| true);
    queue.finish("env", &batch);
    assert_eq!((queue.size(), queue.environments().len()), ((0, 0), 0));
    add(&mut queue, "a", "k", 3);
    assert_eq!(all(&queue), [item("a", "k", "3")]);
}

#[test]
fn a_batch_has_a_hundred_identities_of_one_environment_in_their_order() {
    let mut queue = queue(1 << 20);
    for number in (0..250).rev() {
        add(&mut queue, &format!("i{number:03}"), "k", number);
        add(&mut queue, &format!("i{number:03}"), "l", number);
    }
    queue.add("other", "x", "k", None, SystemTime::now());
    let mut sizes = Vec::new();
    while let batch = queue.batch("env", u64::MAX, |_| true)
        && !batch.is_empty()
    {
        if sizes.is_empty() {
            assert_eq!(&*batch[0].identifier, "i249");
        }
        sizes.push(batch.len());
        queue.finish("env", &batch);
    }
    assert_eq!(sizes, [200, 200, 100]);
    assert_eq!(queue.environments(), [Box::<str>::from("other")]);
    assert_eq!(queue.drop_environment("other"), 1);
    assert_eq!(queue.size(), (0, 0));
}

#[test]
fn beyond_its_bytes_it_keeps_what_it_has_and_no_value_that_is_old() {
    let one = item_bytes("a", "k", "1");
    let mut queue = queue(2 * one);
    add(&mut queue, "a", "k", 1);
    add(&mut queue, "b", "k", 1);
    add(&mut queue, "c", "k", 1);
    add(&mut queue, "a", "k", 2);
    assert_eq!(all(&queue), [item("a", "k", "2"), item("b", "k", "1")]);
    assert_eq!(queue.metrics.lost_of(TraitForwardLoss::Full as usize), 1);
    // The longer value has no space, and the older one must not stay upstream's last.
    add(&mut queue, "b", "k", 1000);
    assert_eq!(all(&queue), [item("a", "k", "2")]);
    assert_eq!(queue.size(), (1, one));
    queue.erase("env", "a");
    assert_eq!(queue.size(), (0, 0));
}
