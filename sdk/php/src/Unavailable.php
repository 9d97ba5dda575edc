<?php

namespace Claviger;

/** Custody is away, or cannot answer now. Nothing was signed or checked. */
class Unavailable extends Error
{
}
