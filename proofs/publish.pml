/*
 * One CPU against the walkers: a new table is zeroed, then linked, then filled (docs/locking.md, C4 and M1).
 *
 * Modelled
 *   - A page that held a valid descriptor in its former life, and whose zeroes, whose link and whose first leaf are three stores.
 *     Each reaches the walkers at any later time and in any order, but a release store after all that were before it.
 *   - A walker that reads the root's entry, then the table's, in that order: the second depends on the first.
 *   - A guest that is entered again once the DSB is done, and whose access must then find the leaf.
 *
 * Abstracted away: caches that walkers do not look into (cleaned before linking: Spares::prepare); locks.
 *
 * Broken variants: LINK_RELAXED, LINK_BEFORE_ZERO, NO_DSB.
 */

bool nothing_of_a_former_life_is_walked, a_mapping_that_was_reported_is_seen;

mtype = { Garbage, Zero, Leaf };
bool linked;                           /* what walkers see of the root's entry ... */
mtype table = Garbage;                 /* ... and of the table's */
bool zero_waits, link_waits, leaf_waits;
bool entered;

active proctype Faulter() {
#ifdef LINK_BEFORE_ZERO
  atomic { link_waits = true };                        /* Locked::link, too early */
  !link_waits;
#endif
  atomic { zero_waits = true };                        /* Pool::alloc_root: relaxed stores */
#ifndef LINK_BEFORE_ZERO
#ifndef LINK_RELAXED
  !zero_waits;                                         /* Locked::link: the release of Locked::replace */
#endif
  atomic { link_waits = true };                        /* Locked::link: the store */
#endif
  !zero_waits;                                         /* Locked::replace of the leaf: release, too */
  atomic { leaf_waits = true };                        /* Locked::replace: the store */
#ifndef NO_DSB
  !zero_waits && !link_waits && !leaf_waits;           /* the end of install: DSB ISHST */
#endif
  entered = true                                       /* Outcome::Resumed: ERET */
}

/* hardware: a walk, on behalf of the guest */
active proctype Walker() {
  bool resumed, found;
end:
  do
  :: atomic { resumed = entered; found = linked };
     atomic {
       if
       :: found && table == Garbage -> assert(nothing_of_a_former_life_is_walked)
       :: resumed && !(found && table == Leaf) -> assert(a_mapping_that_was_reported_is_seen)
       :: else
       fi;
       resumed = false; found = false
     }
  od
}

/* hardware: stores reach the walkers */
active proctype Stores() {
end:
  do
  :: atomic { zero_waits -> table = Zero; zero_waits = false }
  :: atomic { link_waits -> linked = true; link_waits = false }
  :: atomic { leaf_waits && !zero_waits -> table = Leaf; leaf_waits = false }
  od
}
