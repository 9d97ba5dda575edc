<?php

namespace Claviger;

/**
 * A connection gave no answer.
 *
 * @internal
 */
final class Unanswered extends \Exception
{
}
