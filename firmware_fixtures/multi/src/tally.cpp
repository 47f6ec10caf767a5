// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// The tally, in C++: an object whose constructor has to run before main.

#include "tally.h"

namespace {

class Tally {
public:
    Tally() : dots_(0), dashes_(0), ready_(true) {}

    void add(const char *code)
    {
        for (; ready_ && *code != '\0'; code++) {
            dots_ += *code == '.';
            dashes_ += *code == '-';
        }
    }

    unsigned dots() const { return dots_; }
    unsigned dashes() const { return dashes_; }

private:
    unsigned dots_;
    unsigned dashes_;
    volatile bool ready_; // stays false, and the tally at zero, if constructors don't run
};

Tally tally;

} // namespace

extern "C" void tally_add(const char *code)
{
    tally.add(code);
}

extern "C" unsigned tally_dots()
{
    return tally.dots();
}

extern "C" unsigned tally_dashes()
{
    return tally.dashes();
}
