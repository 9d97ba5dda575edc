<?php

namespace Claviger;

/** Custody refused the call or could not do it. */
class Error extends \RuntimeException
{
    /**
     * @param string $reason one of the API's codes, such as "denied"
     * @param string $hint   the next thing to do
     */
    public function __construct(
        public readonly string $reason,
        string $message,
        public readonly string $hint = '',
        ?\Throwable $previous = null,
    ) {
        parent::__construct($hint === '' ? $message : "$message: $hint", 0, $previous);
    }
}
